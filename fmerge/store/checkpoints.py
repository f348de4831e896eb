"""Reads classifiers: Hugging Face folders, hub ids and Lightning checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fmerge.errors import UserError, known
from fmerge.store.sources import (
    hyperparameters,
    is_lightning,
    load_lightning,
    read_config,
)
from fmerge.store.weights import read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_classifier(
    source: str, task: str, labels: Sequence[str] | None = None, fresh_head: bool = False
) -> "PreTrainedModel":
    """Reads a sequence classifier in float32 on the CPU.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
        task: Which of a Lightning checkpoint's heads to take.
        labels: The task's label names in order; those of the checkpoint when None.
        fresh_head: Start a new head where the source has none that fits; otherwise refuse.

    Returns:
        An ``AutoModelForSequenceClassification`` with every body weight from the source.

    Raises:
        UserError: If the source cannot be read, lacks body weights or a head, or its labels are
            others than ``labels``.
    """
    state: dict[str, Tensor] | None = None
    folder = source
    if is_lightning(source):
        folder, labels, state = _read_lightning(Path(source), task, labels)
    config = read_config(source, folder)
    if labels is not None:
        _set_labels(config, labels, source, fresh_head or state is not None)
    kind = "AutoModelForSequenceClassification"
    model, lacking = read_weights(source, kind, config, folder, state)
    _check_complete(model, lacking, source, fresh_head)
    return model


def _read_lightning(
    path: Path, task: str, labels: Sequence[str] | None
) -> tuple[str, Sequence[str], dict[str, Tensor]]:
    found = hyperparameters(path)
    tasks: dict[str, list[str]] = found.get("tasks") or {}
    if not isinstance(tasks, dict) or not all(isinstance(one, list) for one in tasks.values()):
        raise UserError(f"{path}: its 'tasks' are no lists of labels by task; it is damaged")
    if task not in tasks:
        raise UserError(f"{path}: has no head for task '{task}'; it has: {known(tasks)}")
    if labels is not None and list(labels) != tasks[task]:
        raise UserError(_other_labels(str(path), labels, tasks[task]))
    prefix = f"models.{task}."
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_lightning(path)["state_dict"].items()
        if name.startswith(prefix)
    }
    return found["path"], tasks[task], state


def _set_labels(config: Any, labels: Sequence[str], source: str, replace: bool) -> None:
    names = config.id2label or {}
    if sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise UserError(
            f"{source}: its config's id2label numbers the labels {known(names)}, but they must "
            "run from 0; get its config.json again"
        )
    own = [names[i] for i in range(len(names))]
    unnamed = own == [f"LABEL_{i}" for i in range(len(own))]
    if not replace and own != list(labels) and not (unnamed and len(own) == len(labels)):
        raise UserError(_other_labels(source, labels, own))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def _other_labels(source: str, expected: Sequence[str], found: Sequence[str]) -> str:
    return (
        f"{source}: its labels are {list(found)}, but the task's are {list(expected)}; "
        "use an expert of this very task, or list the task's labels in the expert's order"
    )


def _check_complete(
    model: "PreTrainedModel", lacking: Mapping[str, str], source: str, fresh_head: bool
) -> None:
    body = [key for key in lacking if key.startswith(model.base_model_prefix + ".")]
    if body:
        more = f", and {len(body) - 1} more" if len(body) > 1 else ""
        raise UserError(f"{source}: body tensor '{body[0]}' is {lacking[body[0]]}{more}")
    if lacking and not fresh_head:
        raise UserError(
            f"{source}: has no trained classification head ('{sorted(lacking)[0]}' is missing); "
            "fine-tune it first with 'fmerge fit'"
        )
