"""Compares a checkpoint's label names with the task's: equal, permuted or different."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fmerge.errors import UserError, known
from fmerge.params import Params, head_parts, last_linear
from fmerge.store.label_kinds import PROBLEMS, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUMBER = re.compile(r"\s*([+-]?)(0|[1-9][0-9]*)(?:\.0+)?\s*")
_ORDERS: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()
"""Networks whose outputs were exchanged to the index of the checkpoint's output for each."""


def label_order(
    config: Any, labels: Sequence[str], source: str, any_labels: bool = False
) -> list[int]:
    """Finds which of a checkpoint's outputs belongs to each of the task's labels.

    Names are compared without case, spaces, hyphens and underscores, and whole numbers as numbers.
    Names that mean nothing (``LABEL_0``, …) are taken to be in the task's order. A single output is
    a number, whatever its name.

    Args:
        config: A Hugging Face configuration.
        labels: The task's label names in order.
        source: Where the checkpoint is, for the message.
        any_labels: Accept outputs of other names: they will be trained anew.

    Returns:
        The index of the checkpoint's output for each label.

    Raises:
        UserError: If the checkpoint has other labels.
    """
    names = config.id2label or {}
    if sorted(names, key=str) != sorted(range(len(names)), key=str):
        raise UserError(
            f"{source}: its config's id2label numbers the labels {known(names)}, but they must "
            "run from 0; get its config.json again"
        )
    own = [str(names[i]) for i in range(len(names))]
    unnamed = own == [f"LABEL_{i}" for i in range(len(own))]
    if len(own) == len(labels) and (own == list(labels) or unnamed or len(own) == 1):
        return list(range(len(own)))
    found, wanted = [_plain(name) for name in own], [_plain(name) for name in labels]
    # names that are equal but for case or hyphens cannot be assigned
    if sorted(found) != sorted(wanted) or len(set(found)) < len(found):
        if any_labels:
            return list(range(len(labels)))
        raise UserError(other_labels(source, labels, own))
    return [found.index(name) for name in wanted]


def set_labels(config: Any, labels: Sequence[str]) -> None:
    """Names a configuration's outputs.

    Args:
        config: A Hugging Face configuration, which is changed.
        labels: The label names in order.
    """
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def problem_type(config: Any, labels: Sequence[str], source: str, new: bool) -> str | None:
    """Finds what a classifier's outputs mean.

    Args:
        config: Its configuration.
        labels: The label names in order.
        source: Where the checkpoint is, for the message.
        new: Whether the head is new, or was trained by ``fmerge fit``.

    Returns:
        The ``problem_type``: a trained head keeps its own, which may be unset but for several
        labels.

    Raises:
        UserError: If the outputs of a trained head mean something else than the task's answers.
    """
    kind = kind_of(labels)
    usual, own = PROBLEMS.get(kind), config.problem_type
    if new or (own is None and kind == "labels"):
        return usual
    if own in {None, usual} or kind == "tags":
        return own  # type: ignore[no-any-return]
    means = {
        "multi_label_classification": "its labels do not exclude each other",
        "single_label_classification": "its classes exclude each other",
    }.get(own, "its answers are numbers")
    raise UserError(
        f"{source}: its config's problem_type is {own}: {means}, but {_ANSWERS[kind]}; give "
        f"{_GIVE.get(own, 'data of its own task')}, or leave --data out to merge it without scores"
    )


_ANSWERS: Final = {
    "classes": "each of the task's examples is of one class",
    "labels": "the task's examples have any number of labels",
    "number": "the task's answers are single numbers",
}
_GIVE: Final = {
    "multi_label_classification": "data with lists of labels",
    "single_label_classification": "data with one label an example",
    "regression": "data with labels: number",
}


@torch.no_grad()
def reorder_outputs(
    model: "PreTrainedModel", order: Sequence[int], source: str
) -> "PreTrainedModel":
    """Puts the rows of a classifier's last linear layer into the task's order, in place.

    Args:
        model: A Hugging Face classifier.
        order: The index of the present output for each label.
        source: Where the checkpoint is, for the message.

    Returns:
        The same classifier.

    Raises:
        UserError: If the head does not end in a linear layer of that many outputs.
    """
    if list(order) == list(range(len(order))):
        return model
    found = last_linear(model)
    if found is None or found[1].out_features != len(order) or _is_one_of_two(model, *found):
        raise UserError(
            f"{source}: its labels stand in another order than the task's, and its head does not "
            "end in a linear layer whose rows could be exchanged; list the task's labels in the "
            "expert's order"
        )
    # weight and bias alike: both have an output for each row
    for parameter in found[1].parameters():
        parameter.data = parameter.detach()[list(order)]
    _ORDERS[model] = list(order)
    return model


def _is_one_of_two(model: nn.Module, name: str, layer: nn.Linear) -> bool:
    """Whether another part of the head has a layer like it, as DeiT's that learns of a teacher."""
    own = name.partition(".")[0]
    return any(
        isinstance(one, nn.Linear)
        and other.partition(".")[0] in head_parts(model) - {own}
        and one.weight.shape == layer.weight.shape
        for other, one in model.named_modules()
    )


def checkpoint_order(model: nn.Module, outputs: int) -> list[int]:
    """Gives the order that a classifier's outputs had in its checkpoint.

    Args:
        model: A network that was read.
        outputs: Its number of outputs.

    Returns:
        For each output of the checkpoint, the index of that output now.
    """
    order = _ORDERS.get(model, list(range(outputs)))
    return sorted(range(len(order)), key=order.__getitem__)


def in_checkpoint_order(model: nn.Module, values: Mapping[str, Tensor]) -> Params:
    """Puts the last linear layer of a classifier into its checkpoint's order.

    Args:
        model: A network that was read.
        values: A tensor for each of its parameters, or for some: weights, or a Fisher.

    Returns:
        The same tensors, but new ones where the outputs were exchanged on reading.
    """
    found = last_linear(model) if model in _ORDERS else None
    if found is None:
        return dict(values)
    name, layer = found
    order = checkpoint_order(model, layer.out_features)
    rows = {f"{name}.{own}" for own, _ in layer.named_parameters()}
    return {key: value[order] if key in rows else value for key, value in values.items()}


def other_labels(source: str, expected: Sequence[str], found: Sequence[str]) -> str:
    """Words the refusal of a checkpoint of another task.

    Args:
        source: Where the checkpoint is.
        expected: The task's labels.
        found: The checkpoint's.

    Returns:
        One line.
    """
    return (
        f"{source}: its labels are {list(found)}, but the task's are {list(expected)}; "
        "use an expert of this very task"
    )


def plain_number(text: str) -> str:
    """Writes a whole number in one way.

    Args:
        text: Any text.

    Returns:
        The number without plus sign, decimals and spaces, such as 1 for 1.0; any other text, such
        as 01, as it is.
    """
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    return found[2] if found[1] != "-" or found[2] == "0" else f"-{found[2]}"


def is_whole(text: str) -> bool:
    """Tells whether a text is a whole number as ``plain_number`` writes it.

    Args:
        text: Any text.

    Returns:
        Whether it is.
    """
    return _NUMBER.fullmatch(text) is not None and plain_number(text) == text


def _plain(name: str) -> str:
    number = plain_number(name)
    return number if is_whole(number) else re.sub(r"[\s_-]+", "", name).casefold()
