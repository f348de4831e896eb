"""What tasks from files of one's own share: the answer of each example, and the names of all."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from typing_extensions import override

from fmerge.data.answer_columns import AnswerColumns
from fmerge.data.examples import Example, Split
from fmerge.data.splits import GivenSplits
from fmerge.data.tables import Row
from fmerge.store import USUAL_METRICS, LabelNames

Labelled = tuple[Row, Mapping[str, Any]]
"""A row, and what its example has beside the label."""


class LabelledFiles(GivenSplits, ABC):
    """A task of classes, several labels or numbers, from files.

    Args:
        splits: The splits that files are given for.
        answers: Reads the answers.
        metrics: Metrics, whose mean is the score; those of the answers when None.
    """

    def __init__(
        self, splits: Sequence[str], answers: AnswerColumns, metrics: list[str] | None
    ) -> None:
        GivenSplits.__init__(self, splits)  # of several bases, which the class calls one by one
        self._answers = answers
        self._metrics = metrics

    @abstractmethod
    def rows(self, split: str) -> Sequence[Labelled]:
        """Reads the rows of a split.

        Args:
            split: One of those that files are given for.

        Returns:
            Each row, with the columns of its answer, and its example without it.
        """

    @property
    @override
    def labels(self) -> list[str]:
        return self._names

    @cached_property
    def metrics(self) -> Sequence[str]:  # type: ignore[override]
        """Names of the metrics, whose mean is the score."""
        return self._metrics or USUAL_METRICS[self._names.kind]

    @override
    def examples(self, split: Split) -> Sequence[Example]:
        self.check_given(split)
        return [
            {**fields, "label": self._answers.label(answer, row, self._names)}
            for row, fields, answer in self._rows[split]
        ]

    @cached_property
    def _names(self) -> LabelNames:
        rows = [one for split in self._rows.values() for one in split]
        return self._answers.names((answer, row) for row, _, answer in rows)

    @cached_property
    def _rows(self) -> dict[str, list[tuple[Row, Mapping[str, Any], Any]]]:
        """The rows of every split, with their examples and answers."""
        # all splits at once: a bad row of the test split is said before a fit, not after it
        return {
            split: [(row, fields, self._answers.read(row)) for row, fields in self.rows(split)]
            for split in self._splits
        }
