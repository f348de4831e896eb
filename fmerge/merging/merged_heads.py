"""Experts of one task, whose heads are merged like their bodies: what they must have in common."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from torch import nn

from fmerge.errors import UserError, known
from fmerge.modules import TaskModule
from fmerge.params import Params, params_of
from fmerge.store import LabelNames, labels_of_config

HeadMode = Literal["keep", "merge", "train"]
"""What becomes of the experts' heads: each stays its task's, all are merged like the body, or
each is trained where coefficients are learned."""

_INSTEAD = "leave --heads out to keep each expert's own"


def check_mode(mode: str) -> None:
    """Refuses an unknown mode.

    Args:
        mode: What was asked for.

    Raises:
        UserError: If it is none.
    """
    if mode not in {"keep", "merge", "train"}:
        raise UserError(f"--heads: is {mode!r}, but must be keep, merge or train")


def check_one_task(labels: Mapping[str, Sequence[str]]) -> None:
    """Refuses data of tasks whose labels differ.

    Args:
        labels: Task name to class names, where the data are known.

    Raises:
        UserError: If a task has other labels than the first, or in another order; the message
            names the first difference.
    """
    for name, own in list(labels.items())[1:]:
        first, expected = next(iter(labels.items()))
        if list(own) != list(expected):
            raise UserError(
                f"--heads: is merge, but task '{name}' has {_difference(own, expected)} of task "
                f"'{first}'; {_INSTEAD}"
            )


def _difference(own: Sequence[str], expected: Sequence[str]) -> str:
    if len(own) != len(expected):
        return f"{len(own)} labels ({known(own)}), not the {len(expected)} ({known(expected)})"
    number = next(i for i, pair in enumerate(zip(own, expected, strict=True)) if len({*pair}) > 1)
    return f"'{own[number]}' as label {number}, not '{expected[number]}', that"


def labels_of(model: nn.Module) -> LabelNames | None:
    """Reads the labels of a classifier's config.

    Args:
        model: A Hugging Face classifier, or a network of another kind.

    Returns:
        The labels in the order of the outputs; None where there are none.
    """
    config = getattr(model, "config", None)
    return labels_of_config(config) if getattr(config, "id2label", None) else None


def check_heads(
    reference: nn.Module, other: nn.Module, body: Collection[str], reference_name: str, name: str
) -> None:
    """Refuses a head of another layout.

    Args:
        reference: The first expert's network.
        other: The network of another expert, or of the base.
        body: The names of the body's tensors, which are checked elsewhere.
        reference_name: Where ``reference`` comes from, for the message.
        name: Where ``other`` comes from, for the message.

    Raises:
        UserError: If a tensor of the head is missing, unexpected or of another shape.
    """
    expected, found = params_of(reference), params_of(other)
    for key in dict.fromkeys([*expected, *found]):
        shapes = [tuple(one[key].shape) if key in one else "no" for one in (found, expected)]
        if key not in body and shapes[0] != shapes[1]:
            raise UserError(
                f"--heads: is merge, but {name} has {shapes[0]} '{key}' in its head and "
                f"{reference_name} has {shapes[1]}; {_INSTEAD}"
            )


def merged_part(module: TaskModule, model: nn.Module, whole: bool) -> Params:
    """Selects what is merged of a network.

    Args:
        module: Knows what its tasks share.
        model: The network.
        whole: Whether heads are merged too.

    Returns:
        Its body, or all its parameters; they share memory with the network.
    """
    return params_of(model) if whole else module.body(model)
