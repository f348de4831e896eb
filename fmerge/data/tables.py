"""Tables in files: CSV, JSON lines and Parquet, with every cell as it stands in the file."""

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from fmerge.data.readers import READERS, check_columns
from fmerge.errors import UserError, known
from fmerge.system.paths import expand

Files = str | list[str]
"""A file, a pattern such as train-*.parquet, or several of them."""


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
        values: Column name to cell; a missing one is None.
        file: The file.
        number: Its row as an editor shows it: the line where it starts, so that the header of a
            CSV file is row 1; of a Parquet file or a JSON list the position, from 1.
    """

    values: Mapping[str, Any]
    file: Path
    number: int

    def at(self, column: str) -> str:
        """Names the place of a cell.

        Args:
            column: The cell's column.

        Returns:
            File, row and column.
        """
        return f"{self.file}, row {self.number}, column '{column}'"

    def text(self, column: str) -> str:
        """Reads a cell as text.

        Args:
            column: The cell's column.

        Returns:
            The text as it stands in the file, numbers included.

        Raises:
            UserError: If the cell is missing, or holds neither text nor a number.
        """
        value = self.values.get(column)
        if is_missing(value):
            raise UserError(f"{self.at(column)}: is empty; give it a text, or remove the row")
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int | float | Decimal):
            return str(value)
        raise UserError(f"{self.at(column)}: holds {type(value).__name__}, but a text is needed")


def is_missing(value: Any) -> bool:
    """Tells whether a cell has no value.

    Args:
        value: A cell.

    Returns:
        Whether it is None or NaN, which tables of numbers have in the place of None.
    """
    return value is None or (isinstance(value, float | Decimal) and isnan(value))


def find_files(given: Files, endings: Sequence[str] = tuple(READERS)) -> list[Path]:
    """Finds the files of a split.

    Args:
        given: A path, a pattern such as ``train-*.parquet``, or several of them.
        endings: The endings of files that are read.

    Returns:
        The files, in the order given; those of a pattern sorted by name.

    Raises:
        UserError: If there is none, or one has an ending that is not read.
    """
    found: list[Path] = []
    for one in [given] if isinstance(given, str) else given:
        path = Path(expand(one))
        if not path.is_file():
            matches = sorted(Path(match) for match in glob.glob(str(path)))
            if not (matches := [match for match in matches if match.is_file()]):
                raise UserError(f"{one}: no such file")
            found += matches
        else:
            found.append(path)
    for path in found:
        if path.suffix.lower() not in endings:
            raise UserError(f"{path}: has an unknown ending; known: {known(endings)}")
        if found.count(path) > 1:
            raise UserError(f"{path}: is given twice for one split; name each file once")
    return found


def is_table(path: str | Path) -> bool:
    """Tells whether a path is that of a table.

    Args:
        path: Any path.

    Returns:
        Whether its ending is one of ``READERS``.
    """
    return Path(path).suffix.lower() in READERS


def read_table(
    path: Path, columns: Sequence[str], split: str, optional: Sequence[str] = ()
) -> list[Row]:
    """Reads some columns of a file.

    Args:
        path: A .csv, .tsv, .json, .jsonl, .parquet or .txt file.
        columns: Columns that must be there.
        split: What it is read for, for errors.
        optional: Columns that are read where they are there.

    Returns:
        Its rows.

    Raises:
        UserError: If it cannot be read, lacks a column or has one twice.
    """
    try:
        names, rows = READERS[path.suffix.lower()](path, columns, optional)
        found = list(rows)
    except UserError:
        raise
    except Exception as error:  # pyarrow raises many kinds, as of unknown codecs
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot read its {split} split ({reason})") from error
    if not names:  # JSON lines: their columns are those of all rows
        names = list(dict.fromkeys(name for _, values in found for name in values))
    if found:
        check_columns(str(path), columns, names)
    wanted = [*columns, *(name for name in optional if name in names)]
    return [
        Row({name: values.get(name) for name in wanted}, path, number) for number, values in found
    ]


def with_numbers(rows: Sequence[Row]) -> list[Row]:
    """Turns columns of CSV files that hold nothing but numbers, or true and false, into such.

    Args:
        rows: Rows of a split.

    Returns:
        The rows. A column changes only where each cell, rendered as text, is what it was.
    """
    names = rows[0].values if rows else {}
    plain = [row for row in rows if row.file.suffix.lower() in {".csv", ".tsv"}]
    kinds = {name: _kind({row.values.get(name) for row in plain}) for name in names}

    def typed(row: Row) -> Row:
        cells = row.values.items()
        values = {
            name: cell if cell is None else kinds.get(name, str)(cell) for name, cell in cells
        }
        return Row(values, row.file, row.number)

    return [typed(row) if row.file.suffix.lower() in {".csv", ".tsv"} else row for row in rows]


class _Flag(int):
    """True or false as it is written in its file."""

    literal: str

    def __new__(cls, literal: str) -> "_Flag":
        flag = super().__new__(cls, literal.casefold() == "true")
        flag.literal = literal
        return flag

    def __str__(self) -> str:
        return self.literal

    def __reduce__(self) -> Any:
        return _Flag, (self.literal,)


def _kind(column: set[Any]) -> Callable[[str], Any]:
    cells = column - {None}
    if cells and all(cell.casefold() in {"true", "false"} for cell in cells):
        return _Flag
    for kind in (int, float):
        try:
            if cells and all(str(kind(cell)) == cell and isfinite(kind(cell)) for cell in cells):
                return kind
        except (ValueError, OverflowError):
            continue
    return str
