"""The answers in a table's rows: one class, several labels, or a number."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from decimal import Decimal
from math import isfinite
from typing import Any, Literal, cast, final

from fmerge.data.label_names import LabelNumbers, class_names, in_order, read_label
from fmerge.data.tables import Row, is_missing
from fmerge.errors import UserError, printable
from fmerge.store import LabelNames
from fmerge.store.labels import plain_number

Labels = list[str] | Literal["number"]
"""Names of classes or labels in the order of an expert's outputs; or ``number``: a regression."""

_YES = {"1", "true", "yes"}
_NO = {"0", "false", "no"}


class AnswerColumns(ABC):
    """Which columns hold the answers of a table, and how they are read.

    Attributes:
        columns: Names of the columns.
    """

    columns: list[str]

    @abstractmethod
    def read(self, row: Row) -> Any:
        """Reads the answer of a row as it is written.

        Args:
            row: The row.

        Returns:
            The name of a class, names of labels as a tuple, or a number.
        """

    @abstractmethod
    def names(self, found: Iterable[tuple[Any, Row]]) -> LabelNames:
        """Names the outputs of a task.

        Args:
            found: What ``read`` gave for every row, and the row.

        Returns:
            The names in order, and what they are.
        """

    @abstractmethod
    def label(self, answer: Any, row: Row, names: LabelNames) -> int | float | list[int]:
        """Turns an answer into an example's ``label``.

        Args:
            answer: What ``read`` gave.
            row: Its row, for errors.
            names: What ``names`` gave.

        Returns:
            A class's number, 0 or 1 for each label, or a number.
        """


def answer_columns(
    label: str | list[str], labels: Labels | None, separator: str | None
) -> AnswerColumns:
    """Tells how a table holds answers.

    Args:
        label: A column: of a class, a list of labels, labels in one text, or a number. Several:
            a column of 0 or 1 for each label.
        labels: Names of the classes or labels, or ``number``.
        separator: What stands between several labels in a text.

    Returns:
        What reads them.

    Raises:
        UserError: If the options contradict each other.
    """
    if isinstance(label, list):
        if labels == "number" or separator is not None:
            what = "labels is number" if labels == "number" else f"separator is {separator!r}"
            raise UserError(
                f"TextFiles: label has several columns, each of one label's 0 or 1, but {what}; "
                "name one column, or leave that out"
            )
        return _OneColumnEach(label, labels)
    if labels == "number":
        if separator is not None:
            raise UserError("TextFiles: labels is number, but separator is set; leave it out")
        return _Number(label)
    return _Named(label, labels, separator)


@final
class _Number(AnswerColumns):
    """A column of numbers, as of a regression."""

    def __init__(self, column: str) -> None:
        self.columns = [column]

    def read(self, row: Row) -> float:
        (column,) = self.columns
        value = row.values.get(column)
        if is_missing(value) or not str(value).strip():
            raise UserError(f"{row.at(column)}: has no number; give it one, or remove the row")
        if not isinstance(value, bool | list | dict):
            try:
                number = float(cast("str | Decimal", value))
            except (TypeError, ValueError):
                number = float("nan")
            if isfinite(number):
                return number
        raise UserError(
            f"{row.at(column)}: holds {printable(str(value))}, which is no finite number, but "
            "labels is number; correct it, or leave labels out for classes"
        )

    def names(self, found: Iterable[tuple[Any, Row]]) -> LabelNames:
        return LabelNames(self.columns, "number")

    def label(self, answer: Any, row: Row, names: LabelNames) -> float:
        return float(answer)


@final
class _OneColumnEach(AnswerColumns):
    """A column of 0 or 1 for each label."""

    def __init__(self, columns: list[str], labels: Sequence[str] | None) -> None:
        twice = next((one for one in columns if columns.count(one) > 1), None)
        if not columns or twice is not None:
            what = "names no column" if twice is None else f"names the column '{twice}' twice"
            raise UserError(f"TextFiles: label {what}; name one column for each label")
        if labels is not None and sorted(labels) != sorted(columns):
            raise UserError(
                f"TextFiles: labels are {list(labels)}, but must be the columns of label, "
                f"{columns}, in the order of the expert's outputs"
            )
        self.columns = columns
        self._names = LabelNames(columns if labels is None else labels, "labels")

    def read(self, row: Row) -> tuple[str, ...]:
        return tuple(column for column in self.columns if self._is_set(row, column))

    def _is_set(self, row: Row, column: str) -> bool:
        value = row.values.get(column)
        text = "" if is_missing(value) else plain_number(str(value)).strip().casefold()
        if text not in _YES | _NO:
            what = f"holds {printable(str(value))}" if text else "is empty"
            raise UserError(
                f"{row.at(column)}: {what}, but must be 0 or 1, as one label of several"
            )
        return text in _YES

    def names(self, found: Iterable[tuple[Any, Row]]) -> LabelNames:
        return self._names

    def label(self, answer: Any, row: Row, names: LabelNames) -> list[int]:
        return [int(name in answer) for name in names]


@final
class _Named(AnswerColumns):
    """A column of one class, or of several labels: a list, or a text with a separator."""

    def __init__(self, column: str, labels: Sequence[str] | None, separator: str | None) -> None:
        self.columns = [column]
        self._column = column
        self._separator = separator
        self._given = None if labels is None else [str(name) for name in labels]
        if separator == "":
            raise UserError("TextFiles: separator is empty; give the text between two labels")
        self._numbers: LabelNumbers | None = None
        if self._given is not None:  # checked before any file is read
            self._numbers = LabelNumbers(self._given, single=separator is None)

    def read(self, row: Row) -> str | tuple[str, ...]:
        value = row.values.get(self._column)
        if self._separator is not None:
            return self._separated(value, row)
        if isinstance(value, list):
            return self._listed(value, row)
        return read_label(row, self._column)

    def _separated(self, value: Any, row: Row) -> tuple[str, ...]:
        empty_cell = value is None and row.file.suffix.lower() in {".csv", ".tsv"}
        if not isinstance(value, str) and not empty_cell:
            what = "is empty" if is_missing(value) else f"holds {type(value).__name__}"
            raise UserError(
                f"{row.at(self._column)}: {what}, but a text with labels is needed, as separator "
                f"is {self._separator!r}"
            )
        parts = [one.strip() for one in (value or "").split(self._separator)]
        return self._unique([plain_number(one) for one in parts if one], row)

    def _listed(self, value: list[Any], row: Row) -> tuple[str, ...]:
        if value and all(isinstance(one, bool | float) for one in value):
            return self._flags(value, row)
        for one in value:
            if not isinstance(one, str | int) or not str(one).strip():
                raise UserError(
                    f"{row.at(self._column)}: its list holds {one!r}, but names of labels, or "
                    "their numbers, are needed"
                )
        return self._unique([plain_number(str(one)) for one in value], row)

    def _flags(self, value: list[Any], row: Row) -> tuple[str, ...]:
        """The names of a list of 0.0 or 1.0, or false or true, for each label."""
        given = self._given or []
        if len(value) != len(given) or not all(one in {0, 1} for one in value):
            raise UserError(
                f"{row.at(self._column)}: holds {len(value)} numbers, but one of 0 or 1 is needed "
                f"for each of {len(given)} labels; name all of them with labels"
            )
        return tuple(name for name, one in zip(given, value, strict=True) if one)

    def _unique(self, names: list[str], row: Row) -> tuple[str, ...]:
        twice = next((one for one in names if names.count(one) > 1), None)
        if twice is not None:
            raise UserError(
                f"{row.at(self._column)}: has the label '{printable(twice)}' twice; name each "
                "once, or write a 0 or 1 for each label as false or true"
            )
        return tuple(names)

    def names(self, found: Iterable[tuple[Any, Row]]) -> LabelNames:
        pairs = list(found)
        several = [isinstance(answer, tuple) for answer, _ in pairs]
        if several and any(several) != all(several):
            row = pairs[several.index(not several[0])][1]
            what = ("one label", "a list of labels")
            raise UserError(
                f"{row.at(self._column)}: holds {what[not several[0]]}, but the rows before it "
                f"{what[several[0]]}; write all labels in one way"
            )
        if self._given is not None:
            return LabelNames(self._given, "labels" if any(several) else "classes")
        if not any(several):
            return LabelNames(class_names(pairs, self._column))
        names = in_order({name for answer, _ in pairs for name in answer})
        if not names:
            raise UserError(
                f"{pairs[0][1].file}: column '{self._column}' holds no label in any row; name all "
                "of them with labels"
            )
        return LabelNames(names, "labels")

    def label(self, answer: Any, row: Row, names: LabelNames) -> int | list[int]:
        if self._numbers is None:
            self._numbers = LabelNumbers(names, single=names.kind == "classes")
        if isinstance(answer, str):
            return self._numbers.number(answer, row, self._column)
        chosen = {self._numbers.number(one, row, self._column) for one in answer}
        return [int(number in chosen) for number in range(len(names))]
