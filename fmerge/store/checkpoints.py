"""Reads and writes models: Hugging Face folders, hub ids and Lightning checkpoints."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from fmerge.errors import UserError, known
from fmerge.store.atomic import replacing_folder
from fmerge.store.labels import label_order, other_labels, reorder_outputs, set_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Head = Literal["classification", "question answering"]
_AUTO: Final[dict[Head, str]] = {
    "classification": "AutoModelForSequenceClassification",
    "question answering": "AutoModelForQuestionAnswering",
}


def load_classifier(
    source: str,
    task: str,
    labels: Sequence[str] | None = None,
    fresh_head: bool = False,
    head: Head = "classification",
) -> "PreTrainedModel":
    """Reads a classifier, of whole texts or of the positions in them, in float32 on the CPU.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
        task: Which of a Lightning checkpoint's heads to take.
        labels: The task's label names, whose order the outputs are put into; those of the
            checkpoint when None or none.
        fresh_head: Start a new head where the source has none that fits; otherwise refuse.
        head: What the head is for.

    Returns:
        A Hugging Face model of that head, with every body weight from the source.

    Raises:
        UserError: If the source cannot be read, lacks body weights or a head, or its labels are
            others than ``labels``.
    """
    state: dict[str, Tensor] | None = None
    folder = source
    if is_lightning(source):
        folder, labels, state = _read_lightning(Path(source), task, labels)
    config = _read(source, "config", lambda auto: auto.AutoConfig.from_pretrained(_local(folder)))
    order = label_order(config, labels, source, fresh_head) if labels and state is None else []
    if labels:
        set_labels(config, labels)

    def read(auto: Any) -> Any:
        kind = getattr(auto, _AUTO[head])
        if state is not None:  # the class itself takes tensors, the Auto class wants a folder
            kind = type(kind.from_config(config))
        return kind.from_pretrained(
            None if state is not None else _local(folder),
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in the loading info, and refused below
        )

    model, info = _read(source, "weights", read)
    _check_complete(model, info, source, fresh_head, head)
    return reorder_outputs(model, order, source)


def load_tokenizer(source: str) -> "PreTrainedTokenizerBase":
    """Reads the tokenizer that belongs to a checkpoint.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

    Returns:
        The tokenizer.
    """
    folder = _hyperparameters(Path(source))["path"] if is_lightning(source) else source
    tokenizer: PreTrainedTokenizerBase = _read(
        source, "tokenizer", lambda auto: auto.AutoTokenizer.from_pretrained(_local(folder))
    )
    return tokenizer


def save_classifiers(
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
    with replacing_folder(folder) as temporary, _quiet_transformers():
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


def _local(source: str) -> str:
    """Tells a missing local folder from a hub id, before anything asks the network."""
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


def _read(source: str, what: str, read: Any) -> Any:
    import transformers

    try:
        with _quiet_transformers():
            return read(transformers)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{source}: cannot read its {what}, neither here nor from the hub ({reason})"
        ) from error


def _read_lightning(
    path: Path, task: str, labels: Sequence[str] | None
) -> tuple[str, Sequence[str], dict[str, Tensor]]:
    hyperparameters = _hyperparameters(path)
    tasks: dict[str, list[str]] = hyperparameters["tasks"]
    if task not in tasks:
        raise UserError(f"{path}: has no head for task '{task}'; it has: {known(tasks)}")
    if labels and list(labels) != tasks[task]:
        raise UserError(other_labels(str(path), labels, tasks[task]))
    prefix = f"models.{task}."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_lightning(path)["state_dict"].items()
        if name.startswith(prefix)
    }
    return hyperparameters["path"], tasks[task], state


def _hyperparameters(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_lightning(path).get("hyper_parameters", {})
    if not found.get("path") or not found.get("tasks"):
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


def _check_complete(
    model: Any, info: dict[str, Any], source: str, fresh_head: bool, head: Head
) -> None:
    shapes = {key: (tuple(a), tuple(b)) for key, a, b in info["mismatched_keys"]}
    lacking = [*info["missing_keys"], *shapes]
    body = [key for key in lacking if key.startswith(model.base_model_prefix + ".")]
    if body:
        found = shapes.get(body[0])
        detail = f"{found[0]} where its config says {found[1]}" if found else "missing"
        more = f", and {len(body) - 1} more" if len(body) > 1 else ""
        raise UserError(f"{source}: body tensor '{body[0]}' is {detail}{more}")
    if lacking and not fresh_head:
        raise UserError(
            f"{source}: has no trained {head} head ('{sorted(lacking)[0]}' is missing); "
            "fine-tune it first with 'fmerge fit'"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps loading bars and reports off the terminal: what matters in them is checked here."""
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
