"""What the outputs of a task's networks are: classes, labels, a number, or tags of words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

Kind = Literal["classes", "labels", "number", "tags", "matches"]
"""classes exclude each other; labels do not; a number is the mean of a regression; tags are the
classes of each word; matches are pairs of texts without a score."""

PROBLEMS: Final[Mapping[Kind, str]] = {
    "classes": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
}
"""Kind of outputs to the ``problem_type`` of a Hugging Face config."""


USUAL_METRICS: Final[Mapping[Kind, Sequence[str]]] = {
    "classes": ("accuracy",),
    "labels": ("micro_f1", "average_precision"),
    "number": ("pearson",),
    "tags": ("token_accuracy",),
    "matches": ("recall_at_1",),
}
"""Kind of outputs to the metrics of its answers, where none are named."""


class LabelNames(list[str]):
    """Names of a network's outputs, and what they are.

    Args:
        names: The names in the order of the outputs.
        kind: What they are.

    Attributes:
        kind: What they are.
    """

    def __init__(self, names: Iterable[str] = (), kind: Kind = "classes") -> None:
        super().__init__(names)
        self.kind: Kind = kind


def kind_of(labels: Sequence[str]) -> Kind:
    """Tells what some names are.

    Args:
        labels: Names of outputs; none where each example has its own answers.

    Returns:
        Their own kind; of a plain list a number where it has one name, else classes.
    """
    if isinstance(labels, LabelNames):
        return labels.kind
    return "number" if len(labels) == 1 else "classes"


def labels_of_config(config: Any) -> LabelNames:
    """Reads the names of a classifier's outputs, and what they are.

    Args:
        config: A Hugging Face configuration.

    Returns:
        The names in the order of the outputs.
    """
    names = [str(label) for _, label in sorted((config.id2label or {}).items())]
    if getattr(config, "problem_type", None) == PROBLEMS["labels"]:
        return LabelNames(names, "labels")
    return LabelNames(names, kind_of(names))
