"""Readers of CSV, JSON lines, Parquet and plain text, which leave every cell as it stands.

Each line of a plain text that is not blank is a row of one column, ``text``.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fmerge.errors import UserError, known

_DELIMITERS = (",", ";", "\t", "|")
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
Numbered = Iterator[tuple[int, Mapping[str, Any]]]
"""Rows by their number."""


class _Number(float):
    """A JSON number that is written as in its file: 1.50 and 1e3, not 1.5 and 1000.0."""

    def __new__(cls, literal: str) -> "_Number":
        number = super().__new__(cls, literal)
        number.literal = literal
        return number

    literal: str

    def __str__(self) -> str:
        return self.literal

    def __reduce__(self) -> Any:
        return _Number, (self.literal,)


def check_columns(where: str, columns: Iterable[str], names: Sequence[str]) -> None:
    """Checks that a table has columns.

    Args:
        where: The table, for errors.
        columns: Columns that are needed.
        names: Those that the table has.

    Raises:
        UserError: If one is not there, or twice.
    """
    for column in columns:
        if column not in names:
            raise UserError(f"{where}: has no column '{column}'; its columns: {known(names)}")
        if names.count(column) > 1:
            raise UserError(f"{where}: has {names.count(column)} columns '{column}'; rename one")


def decoded(path: Path) -> str:
    """Reads a text file in UTF-8, or in the encoding that its byte-order mark tells.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        UserError: If it is of another encoding.
    """
    content = path.read_bytes()
    encoding = next(
        (name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8"
    )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, row {row}: is not {encoding.removesuffix('-sig').upper()} (byte "
            f"0x{content[error.start]:02x}); save the file as UTF-8"
        ) from error


def _read_csv(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> tuple[list[str], Numbered]:
    text = decoded(path)
    header, delimiter = _header(path, text, columns)
    return header, _csv_rows(path, text, header, delimiter)


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the line where it starts."""
    limit = csv.field_size_limit(sys.maxsize)  # the default is less than a long text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for record in reader:
            if record:
                yield begin, record
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, row {begin}: is no CSV ({error}); quote it anew") from error
    finally:
        csv.field_size_limit(limit)


def _header(path: Path, text: str, columns: Sequence[str]) -> tuple[list[str], str]:
    """Finds the delimiter by which the header has the columns: the comma, if it does."""
    headers: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        try:
            _, headers[delimiter] = next(_records(path, text, delimiter), (1, []))
        except UserError:
            if delimiter == _DELIMITERS[-1] and not headers:
                raise
            continue
        if set(columns) <= set(headers[delimiter]):
            return headers[delimiter], delimiter
    best = max(headers, key=lambda one: len(headers[one]))
    if not headers[best]:
        raise UserError(f"{path}: is empty, but its first row must name its columns")
    check_columns(str(path), columns, headers[best])
    return headers[best], best


def _csv_rows(path: Path, text: str, header: Sequence[str], delimiter: str) -> Numbered:
    records = _records(path, text, delimiter)
    next(records)
    for number, record in records:
        if any(record[len(header) :]):
            raise UserError(
                f"{path}, row {number}: has {len(record)} cells, but the header has {len(header)}; "
                f"quote texts that hold '{delimiter}'"
            )
        # an empty cell and a missing one look alike in CSV
        yield number, {name: cell or None for name, cell in zip(header, record, strict=False)}


def _read_json(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> tuple[list[str], Numbered]:
    text = decoded(path)
    if text.lstrip().startswith("["):
        rows = list(enumerate(_json(path, 1, text), 1))
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        # one object over several lines is one row
        whole = bool(lines) and lines[0][1].strip() == "{"
        rows = [(i, _json(path, i, line)) for i, line in ([(1, text)] if whole else lines)]
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, row {number}: holds {type(row).__name__}, but an object with a value "
                "for each column is needed"
            )
    return [], iter(rows)


def _json(path: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text, parse_float=_Number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"row {number} is no JSON: {error}") from error


def _read_parquet(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> tuple[list[str], Numbered]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        names = list(file.schema_arrow.names)
        check_columns(str(path), columns, names)
        # other columns may hold images, which take much memory
        wanted = [*columns, *(name for name in optional if name in names)]
        return names, enumerate(file.read(columns=wanted).to_pylist(), 1)


def _read_text(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> tuple[list[str], Numbered]:
    lines = enumerate(decoded(path).splitlines(), 1)
    return ["text"], ((number, {"text": line}) for number, line in lines if line.strip())


READERS: Final[
    dict[str, Callable[[Path, Sequence[str], Sequence[str]], tuple[list[str], Numbered]]]
] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
    ".tsv": _read_csv,
    ".txt": _read_text,
}
"""Ending of a file to what reads it: its columns, if known, and its rows by number."""
