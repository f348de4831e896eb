"""Reads embedding models: folders of sentence-transformers, or bodies alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fmerge.errors import UserError, known
from fmerge.store.kinds import check_kind
from fmerge.store.language_models import fitted_state
from fmerge.store.side_files import hub_folder
from fmerge.store.sources import is_lightning, package_folder, read_config
from fmerge.store.weights import read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOLINGS: Final = ("mean", "cls", "max")
"""How the vectors of a text's tokens can become one."""

_MODULES: Final = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Pooling:
    """How an embedding model makes a vector of a text.

    Attributes:
        mode: One of ``POOLINGS``.
        max_length: Tokens to which a text is truncated; None where the model sets no limit.
    """

    mode: str = "mean"
    max_length: int | None = None


_POOLINGS: "Final[WeakKeyDictionary[nn.Module, Pooling]]" = WeakKeyDictionary()


def load_embedder(source: str) -> "PreTrainedModel":
    """Reads an embedding model's network in float32 on the CPU.

    Args:
        source: A folder of sentence-transformers, a Hugging Face folder, a hub id,
            ``package:name/folder``, or a Lightning ``.ckpt`` of a fit.

    Returns:
        The network without a head; see ``pooling_of``. A pooler that the source lacks is zero,
        as it takes no part in the embedding.

    Raises:
        UserError: If the source cannot be read, lacks weights, or has a module that is not run.
    """
    state: dict[str, Tensor] | None = None
    folder = source
    if is_lightning(source):
        folder, state = fitted_state(Path(source))
    config = read_config(source, folder)
    check_kind(source, config, "AutoModel", any_head=True)
    pooling = read_pooling(folder)
    model, lacking = read_weights(source, "AutoModel", config, folder, state, any_head=True)
    wrong = {
        name: what
        for name, what in lacking.items()
        if not name.startswith("pooler.") or what != "missing"
    }
    if wrong:
        name, what = next(iter(sorted(wrong.items())))
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{source}: tensor '{name}' is {what}{more}")
    with torch.no_grad():
        for name in lacking:
            model.get_parameter(name).zero_()
    _POOLINGS[model] = pooling
    return model


def pooling_of(model: nn.Module) -> Pooling:
    """Tells how a network's vectors are pooled.

    Args:
        model: A network that ``load_embedder`` gave.

    Returns:
        What its folder says; of a network from elsewhere the mean, as sentence-transformers has it.
    """
    return _POOLINGS.get(model, Pooling())


def read_pooling(source: str) -> Pooling:
    """Reads how the folder of an embedding model makes a vector of a text.

    Args:
        source: The folder, or a hub id.

    Returns:
        Its pooling; the mean where the folder is not of sentence-transformers.

    Raises:
        UserError: If it has a module or a setting that is not run here.
    """
    place = Path(package_folder(source))
    folder = place if place.is_dir() else hub_folder(source)
    if folder is None or not (folder / "modules.json").is_file():
        return Pooling()
    modules = _json(folder / "modules.json", list)
    found = {str(one.get("type", "")).rpartition(".")[2]: one for one in modules}
    if other := next((name for name in found if name not in _MODULES), None):
        raise UserError(
            f"{source}: has the module {other} (modules.json), but fmerge runs "
            f"{known(_MODULES)} alone; merge a model without it"
        )
    prompts = folder / "config_sentence_transformers.json"
    if prompts.is_file() and (name := _json(prompts, dict).get("default_prompt_name")):
        raise UserError(
            f"{prompts}: default_prompt_name is {name!r}, but no prompt is added here; set it to "
            "null, and write the prompt into the texts"
        )
    length = folder / "sentence_bert_config.json"
    settings = _json(length, dict) if length.is_file() else {}
    if settings.get("do_lower_case"):
        raise UserError(
            f"{length}: do_lower_case is true, which is not done here; set it to false, and let "
            "the tokenizer lower the case"
        )
    path = str(found["Pooling"].get("path")) if "Pooling" in found else None
    mode = "mean" if path is None else _mode(folder / path / "config.json")
    longest = settings.get("max_seq_length")
    return Pooling(mode, longest if isinstance(longest, int) and longest > 0 else None)


def _mode(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file}: no such file, but modules.json names its folder")
    config = _json(file, dict)
    names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    chosen = [
        names.get(key.removeprefix("pooling_mode_"), key)
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on is True
    ]
    given = config.get("pooling_mode", chosen)
    modes = [given] if isinstance(given, str) else list(given)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"{file}: pools by {', '.join(map(str, modes)) or 'nothing'}, but one of "
            f"{known(POOLINGS)} is needed"
        )
    return str(modes[0])


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no JSON ({' '.join(str(error).split())})") from error
    items = found if isinstance(found, list) else []
    if not isinstance(found, kind) or not all(isinstance(one, Mapping) for one in items):
        raise UserError(f"{file}: is no file of sentence-transformers; get it again")
    return found
