"""Class labels of tables: which texts are one class, their order, and their numbers."""

from collections.abc import Iterable, Sequence
from decimal import Decimal

from fmerge.data.tables import Row, is_missing
from fmerge.errors import UserError, known, printable
from fmerge.store.labels import is_whole, plain_number

_FLAGS = ("False", "True")


def read_label(row: Row, column: str) -> str:
    """Reads a label: one text for all ways in which a class can be written.

    Args:
        row: A row of a table.
        column: The column of the label.

    Returns:
        The class's name: a whole number without plus sign and decimals (1 for 1.0), any other
        text as it stands in the file.

    Raises:
        UserError: If the label is missing, blank or no single value.
    """
    value = row.values.get(column)
    if is_missing(value) or not str(value).strip():
        raise UserError(f"{row.at(column)}: has no label; give it one, or remove the row")
    if not isinstance(value, str | int | float | Decimal):
        raise UserError(
            f"{row.at(column)}: holds {type(value).__name__}, but one class is needed, or a list "
            "of labels"
        )
    return plain_number(str(value))


def class_names(labels: Iterable[tuple[str, Row]], column: str) -> list[str]:
    """Lists the classes of a task by the labels of its rows.

    Args:
        labels: The name of each row's class, and the row.
        column: The column of the label, for errors.

    Returns:
        The names, sorted as text; whole numbers among them are in numerical order. Where all are
        true or false, however they are written, False and True.

    Raises:
        UserError: If there are fewer than two classes, two that differ by white space alone, or
            numbers that are not whole, which are no classes.
    """
    first: dict[str, Row] = {}
    for name, row in labels:
        first.setdefault(name, row)
    stripped: dict[str, str] = {}
    for name, row in first.items():
        other = stripped.setdefault(name.strip(), name)
        if other != name:
            raise UserError(
                f"{row.at(column)}: the label {name!r} differs from {other!r} by white space "
                "alone; write one class in one way"
            )
    _check_no_scores(first, column)
    flags = {name.capitalize() for name in first} <= set(_FLAGS)
    found = {name.capitalize() for name in first} if flags else set(first)
    if len(found) == 1:
        ((name, row), *_) = first.items()
        raise UserError(
            f"{row.file}: column '{column}' holds nothing but '{printable(name)}', but a "
            "classification needs two classes or more; name all of them with labels"
        )
    return in_order(found)


def _check_no_scores(first: dict[str, Row], column: str) -> None:
    if not all(_is_number(name) for name in first):
        return
    for name, row in first.items():
        if not is_whole(name):
            raise UserError(
                f"{row.at(column)}: holds {name}, a number that is not whole, as of a regression; "
                "set labels to number, or list the numbers with labels if they are classes"
            )


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts the names of classes.

    Args:
        names: The names.

    Returns:
        They as sorted text, in which the places of whole numbers hold these in numerical order.
    """
    ordered = sorted(names)
    numbers = iter(sorted((name for name in ordered if is_whole(name)), key=int))
    return [next(numbers) if is_whole(name) else name for name in ordered]


class LabelNumbers:
    """Numbers of a task's classes.

    Args:
        names: The names of the classes in their order.
        single: Whether an example has one of them, not several.

    Raises:
        UserError: If there are too few, or one is there twice.
    """

    def __init__(self, names: Sequence[str], single: bool = True) -> None:
        if len(names) < 1 + single:
            raise UserError(
                f"TextFiles: labels are {list(names)}, but a classification needs two or more; "
                "for a regression set labels to number"
            )
        self.names = list(names)
        self._numbers: dict[str, int] = {}
        for number, name in enumerate(map(plain_number, names)):
            if not name.strip() or name in self._numbers:
                what = "one that is empty" if not name.strip() else f"'{printable(name)}' twice"
                raise UserError(f"TextFiles: labels have {what}; name each class once")
            self._numbers[name] = number
        # where names are numbers themselves, 1 cannot mean the second of them
        self._by_index = not any(_is_number(name) for name in self._numbers)

    def number(self, name: str, row: Row, column: str) -> int:
        """Finds the number of a class.

        Args:
            name: What ``read_label`` gave: the name of the class; or its number, where no name is
                a number; or false or true for the first or second of two classes.
            row: Its row, for errors.
            column: Its column, for errors.

        Returns:
            The number, from 0.

        Raises:
            UserError: If there is no such class.
        """
        if name in self._numbers:
            return self._numbers[name]
        if self._by_index and is_whole(name) and 0 <= int(name) < len(self.names):
            return int(name)
        if name.capitalize() in _FLAGS and len(self.names) == 2:
            alike = [one.capitalize() for one in self.names]
            return (alike if set(alike) == set(_FLAGS) else list(_FLAGS)).index(name.capitalize())
        raise UserError(
            f"{row.at(column)}: unknown label '{printable(name)}'; known: {known(self.names)}"
        )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return name.isascii() and (is_whole(name) or "." in name or "e" in name.casefold())
