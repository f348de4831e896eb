"""The nine tasks of GLUE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fmerge.data.examples import Example
from fmerge.data.hub import read_rows
from fmerge.data.tables import is_missing
from fmerge.data.validation_as_test import TestFrom, ValidationAsTest
from fmerge.errors import UserError, known

GlueTask = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


@dataclass(frozen=True)
class _Task:
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


_ENTAILED: Final = ("entailment", "not_entailment")

TASKS: Final[dict[str, _Task]] = {
    "cola": _Task(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": _Task(("sentence",), ("negative", "positive")),
    "mrpc": _Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": _Task(("sentence1", "sentence2"), ("score",), ("pearson", "spearman")),
    "qqp": _Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": _Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": _Task(("question", "sentence"), _ENTAILED),
    "rte": _Task(("sentence1", "sentence2"), _ENTAILED),
    "wnli": _Task(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
"""Columns of the text, names of the labels in their order, and metrics."""

HIGHEST = 5.0
"""STS-B's scores lie in [0, 5]."""


class Glue(ValidationAsTest):
    """A task of GLUE, with the columns, labels and metrics of ``nyu-mll/glue``.

    The labels of GLUE's own test split are hidden, so the test examples are taken from the
    validation split. Matena & Raffel 2022 choose coefficients and report scores on the validation
    split: ``test: validation``.

    Args:
        task: Which one.
        source: Hub id; a folder of its layout; or a folder that ``save_to_disk`` wrote, or one
            that holds such a folder under the task's name.
        test: half: the validation split is halved at random, and one half is the test split;
            validation: the whole validation split is the test split too, as in the paper.
        train: Most training examples, chosen at random; all if left out.
        validation: Most validation examples, likewise; test examples are not limited.
        seed: Seed of these choices.
        matched: mnli: validate on the genres of the training examples, or on others.
        bins: stsb: divide the score into so many equal intervals, which are the classes; the
            paper has 25. Regression on the score if left out.
        labels: The task's labels in the order of an expert's numbers, where the expert does not
            name them; the data set's order if left out.
        token: Access token of the hub, for private copies; the environment variable HF_TOKEN
            holds for data and models.
    """

    def __init__(
        self,
        task: GlueTask,
        source: str = "nyu-mll/glue",
        test: TestFrom = "half",
        train: int | None = None,
        validation: int | None = None,
        seed: int = 0,
        matched: bool = True,
        bins: int | None = None,
        labels: list[str] | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(test, train, validation, seed)
        if task not in TASKS:
            raise UserError(f"Glue: unknown task '{task}'; known: {known(TASKS)}")
        if bins is not None and (task != "stsb" or bins < 2):
            raise UserError(f"Glue: bins is {bins}, but only stsb has bins, of which at least 2")
        if labels is not None and sorted(labels) != sorted(TASKS[task].labels):
            raise UserError(
                f"Glue: labels are {labels}, but must be {list(TASKS[task].labels)} in some order"
            )
        self.task = task
        self.source = source
        self.matched = matched
        self.bins = bins
        self.token = token
        self.metrics = TASKS[task].metrics
        self._order = list(labels or TASKS[task].labels)

    @property
    def labels(self) -> list[str]:
        """Names of the classes; the name of the number, where stsb is a regression."""
        if self.bins is None:
            return self._order
        width = HIGHEST / self.bins
        return [f"{(k + 0.5) * width:.4g}" for k in range(self.bins)]

    def read(self, split: Literal["train", "validation"]) -> list[Example]:
        """Reads all labelled examples of a split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text``, ``text_pair`` where the task is on pairs, and ``label``.

        Raises:
            UserError: If a column, the split or a label is missing, or the labels differ.
        """
        columns = TASKS[self.task].columns
        name: str = split
        if self.task == "mnli" and split == "validation":
            name = f"validation_{'matched' if self.matched else 'mismatched'}"
        table = read_rows(self.source, name, self.task, [*columns, "label"], self.token)
        where = f"{self.source}/{self.task}: its {name} split"
        names = getattr(table.features["label"], "names", None)
        if names and list(names) != list(TASKS[self.task].labels):
            raise UserError(
                f"{where} has the labels {list(names)}, expected {list(TASKS[self.task].labels)}"
            )
        rows = table.select_columns([*columns, "label"])
        return [self._example(row, f"{where}, row {i}") for i, row in enumerate(rows)]

    def _example(self, row: Mapping[str, Any], where: str) -> Example:
        columns = TASKS[self.task].columns
        for column in columns:
            if is_missing(row[column]):  # as `datasets` fills up a column that one split lacks
                raise UserError(f"{where}: its '{column}' is missing")
        texts = dict(zip(("text", "text_pair"), (str(row[one]) for one in columns), strict=False))
        return texts | {"label": self._label(row["label"], where)}

    def _label(self, value: Any, where: str) -> int | float:
        if is_missing(value) or value == -1:
            raise UserError(f"{where}: its label is hidden ({value}); name a split with labels")
        if not isinstance(value, int | float):
            raise UserError(f"{where}: its label is {value!r}, but must be a number")
        if self.task == "stsb":
            if not 0 <= value <= HIGHEST:
                raise UserError(f"{where}: its score is {value}, but must lie in [0, 5]")
            return float(value) if self.bins is None else bin_of(float(value), self.bins)
        names = TASKS[self.task].labels
        if value not in range(len(names)):
            raise UserError(f"{where}: its label is {value}; known: 0 to {len(names) - 1}")
        return self._order.index(names[int(value)])  # 1.0 where a column has gaps


def bin_of(score: float, bins: int) -> int:
    """Finds the interval that a score lies in.

    Args:
        score: In [0, 5].
        bins: Number of equal intervals.

    Returns:
        The number of the interval.
    """
    # rounded first: in floating point 0.6 / 0.2 is a little less than 3
    return min(int(round(score * bins / HIGHEST, 6)), bins - 1)
