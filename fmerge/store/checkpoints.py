"""Reads classifiers: Hugging Face folders, hub ids and Lightning checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from fmerge.errors import UserError, known
from fmerge.params import head_parts
from fmerge.store.adapters import has_nameless_head
from fmerge.store.kinds import check_kind, head_facts
from fmerge.store.label_kinds import LabelNames, kind_of
from fmerge.store.labels import (
    label_order,
    other_labels,
    problem_type,
    reorder_outputs,
    set_labels,
)
from fmerge.store.module_kinds import other_module
from fmerge.store.sources import (
    hyperparameters,
    is_lightning,
    load_lightning,
    read_config,
)
from fmerge.store.weights import read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Head = Literal[
    "classification", "question answering", "token classification", "image classification"
]
_AUTO: Final[dict[Head, str]] = {
    "classification": "AutoModelForSequenceClassification",
    "question answering": "AutoModelForQuestionAnswering",
    "token classification": "AutoModelForTokenClassification",
    "image classification": "AutoModelForImageClassification",
}
_MODULES: Final[dict[Head, str]] = {
    "classification": "TextClassifier",
    "question answering": "SpanAnswers",
    "token classification": "TokenClassifier",
    "image classification": "ImageClassifier",
}

_NEW: "Final[WeakKeyDictionary[nn.Module, frozenset[str]]]" = WeakKeyDictionary()
"""Model to the tensors of its body that its source lacks."""


def load_classifier(
    source: str,
    task: str,
    labels: Sequence[str] | None = None,
    fresh_head: bool = False,
    head: Head = "classification",
) -> "PreTrainedModel":
    """Reads a classifier, of whole inputs or of the positions in texts, in float32 on the CPU.

    Args:
        source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
        task: Which of a Lightning checkpoint's heads to take.
        labels: The task's label names, in the order that the outputs will have; those of the
            checkpoint when None or empty.
        fresh_head: Start a new head where the source has none that fits; otherwise refuse.
        head: The kind of head.

    Returns:
        A Hugging Face model of that head, with every body weight from the source; with
        ``fresh_head``, the pooler may be new too, as ``new_pooler`` then says.

    Raises:
        UserError: If the source cannot be read, lacks body weights or a head, or its labels
            differ from ``labels``.
    """
    state: dict[str, Tensor] | None = None
    folder = source
    if is_lightning(source):
        folder, labels, state = _read_lightning(Path(source), task, labels)
    config = read_config(source, folder)
    fitted = state is not None  # the folder gives the architecture, and the fit gave the head
    if not fresh_head and not fitted and (other := other_module(config, _MODULES[head])):
        raise UserError(f"{source}: has no {head} head: {other}")
    check_kind(source, config, _AUTO[head], fresh_head or fitted)
    # a Lightning checkpoint was trained on these labels in this order, as _read_lightning checks
    any_names = fresh_head or has_nameless_head(folder, len(labels or ()))
    order = label_order(config, labels, source, any_names) if labels and not fitted else []
    if labels:
        config.problem_type = problem_type(config, labels, source, fresh_head or fitted)
        set_labels(config, labels)
    facts = head_facts(folder, config)
    model, lacking = read_weights(source, _AUTO[head], config, folder, state, fresh_head)
    _check_complete(model, lacking, source, None if fresh_head else f"{head} head", facts)
    return reorder_outputs(model, order, source)


def _read_lightning(
    path: Path, task: str, labels: Sequence[str] | None
) -> tuple[str, Sequence[str], dict[str, Tensor]]:
    found = hyperparameters(path)
    tasks: dict[str, list[str]] = found.get("tasks") or {}
    if not isinstance(tasks, dict) or not all(isinstance(one, list) for one in tasks.values()):
        raise UserError(f"{path}: its 'tasks' are no lists of labels by task; it is damaged")
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
    kinds = found.get("kinds") or {}
    own = LabelNames(tasks[task], kinds.get(task) or kind_of(tasks[task]))
    if labels and kind_of(labels) != own.kind:
        raise UserError(
            f"{path}: was trained on {own.kind}, but the answers of task '{task}' are "
            f"{kind_of(labels)}; give data of its own task"
        )
    return found["path"], own, state


def _check_complete(
    model: "PreTrainedModel",
    lacking: Mapping[str, str],
    source: str,
    head: str | None,
    facts: str,
) -> None:
    # a head may be new, a body never: transformers fills what is missing with random numbers
    own = head_parts(model)
    body = [key for key in lacking if key.partition(".")[0] not in own]
    new = _new_pooler(model, lacking)
    # a pooler without a head is one, too; what has a head and no pooler is damaged
    if head is None or len(lacking) > len(body):
        body = [key for key in body if key not in new]
    _NEW[model] = new
    if body:
        more = f", and {len(body) - 1} more" if len(body) > 1 else ""
        raise UserError(f"{source}: body tensor '{body[0]}' is {lacking[body[0]]}{more}")
    if lacking and head is not None:
        first = sorted(lacking)[0]
        if lacking[first] != "missing":
            raise UserError(
                f"{source}: head tensor '{first}' is {lacking[first]}; its weights and its "
                "config.json are of two models: get both again"
            )
        raise UserError(
            f"{source}: has no trained {head} ('{first}' is missing{facts}); "
            "fine-tune it first with 'fmerge fit'"
        )


def _new_pooler(model: "PreTrainedModel", lacking: Mapping[str, str]) -> frozenset[str]:
    """Names a pooler that the source lacks as a whole, as models do whose heads read tokens."""
    prefix = f"{model.base_model_prefix}.pooler."
    own = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    return frozenset(own) if all(lacking.get(name) == "missing" for name in own) else frozenset()


def new_pooler(model: nn.Module) -> frozenset[str]:
    """Names the pooler's tensors that are random, as the source of a model had none.

    Args:
        model: A model that ``load_classifier`` gave.

    Returns:
        Names of its body's parameters; none where the source had the pooler.
    """
    return _NEW.get(model, frozenset())
