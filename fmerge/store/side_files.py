"""Files beside a model's weights that other programs need, such as ``tokenizer.model``."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

from fmerge.errors import UserError
from fmerge.store.hub import bound_retries

_ENDINGS: Final = (
    *(".json", ".jinja", ".txt", ".model", ".spm", ".bpe", ".vocab", ".tiktoken", ".dict"),
    *(".codes", ".yaml", ".yml", ".md", ".license"),
)
_STEMS: Final = ("tokenizer.", "vocab.", "sentencepiece.", "spiece.")  # tokenizer.model.v3
_NAMES: Final = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_LEFT: Final = frozenset(
    # of the weights as they were, of their training, and what a merge writes anew
    (
        *("config.json", "README.md", "config.yaml", "trainer_state.json"),
        *("all_results.json", "train_results.json", "eval_results.json", "test_results.json"),
        *("quantize_config.json", "requirements.txt", "training_args.json", "mergekit_config.yml"),
        *("adapter_config.json", "inputs.json", "scores.json", "pareto.json"),
    )
)
_TEMPLATES: Final = "additional_chat_templates"
MOST_BYTES: Final = 256 << 20
"""Largest side file that is copied; the largest vocabularies have some 50 MB."""


def side_files(folder: Path) -> list[Path]:
    """Lists the files that a merged or fine-tuned model takes over from a model's folder.

    Tokenizers, processors, chat templates, generation configs, vocabularies, licences: small text
    files and tokenizer models. Weights, model cards, code, tables of data, hidden files, states of
    training and other folders are left.

    Args:
        folder: A Hugging Face folder.

    Returns:
        Paths relative to it.
    """
    found = [path for path in folder.iterdir() if _is_side_file(path)]
    templates = folder / _TEMPLATES
    if templates.is_dir():
        found += [path for path in templates.iterdir() if path.suffix == ".jinja"]
    # sentence-transformers: a folder with a config for each module, such as 1_Pooling
    found += folder.glob("[0-9]_*/config.json") if (folder / "modules.json").is_file() else []
    return sorted(path.relative_to(folder) for path in found if path.is_file())


def copy_side_files(source: Path, target: Path, replacing: Collection[str] = ()) -> None:
    """Copies the side files that a folder does not have yet.

    Args:
        source: The model's folder.
        target: The folder that it is saved to.
        replacing: The files that are copied all the same.
    """
    for name in side_files(source):
        if str(name) in replacing or not (target / name).exists():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


def hub_folder(source: str) -> Path | None:
    """Finds a model in the hub's cache, with its side files, which are downloaded if need be.

    Args:
        source: The hub id of a model that was read.

    Returns:
        The folder; None where the cache has no such model.

    Raises:
        UserError: If the side files cannot be read.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    bound_retries()
    try:
        config = try_to_load_from_cache(source, "config.json")
    except HFValidationError:  # it cannot be a hub id
        return None
    if not isinstance(config, str):
        return None
    names = (*_NAMES, *_STEMS)
    wanted = [*(f"*{ending}" for ending in _ENDINGS), *(f"{name}*" for name in names)]
    try:  # offline, this is what the cache has
        return Path(snapshot_download(source, allow_patterns=wanted))
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source}: cannot read the files beside its weights ({reason}); try again, or set "
            "HF_HUB_OFFLINE=1 to do without those that the cache lacks"
        ) from error


def _is_side_file(path: Path) -> bool:
    name = path.name
    if name.startswith(".") or name in _LEFT or name.endswith(".index.json"):
        return False
    code = path.suffix in {".py", ".so", ".bin", ".pt", ".pth", ".safetensors"}
    known = path.suffix.lower() in _ENDINGS or path.stem.upper() in _NAMES
    known = known or name.startswith(_STEMS) and not code
    return known and path.is_file() and path.stat().st_size <= MOST_BYTES
