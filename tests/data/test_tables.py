"""Generated tables are read as they were written, or refused by file, row and column."""

import csv
import json
import math
import re
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmerge.data import TextFiles
from fmerge.errors import UserError

CHARACTERS = st.one_of(
    st.sampled_from(list(",;\t|\"'\n\r \\é\u2028[]{}:#")), st.characters(codec="utf-8")
)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=12),
    st.sampled_from(["null", "NA", "None", "nan", "007", "1.50", "true", "", " ", "2024-01-02"]),
)
NAMES = st.sampled_from(
    ["pos", "neg", "NA", "null", "None", "nan", "007", "7", "1", "10", "9", "1.0", "-1", "+2",
     "true", "False", "a;b", 'say "x"', "0.5", "2.50", "", " ", "pos "]
)  # fmt: skip
FLOATS = st.one_of(st.integers(-3, 12).map(float), st.floats(-5, 5), st.just(math.nan))
LABELS = {
    "text": st.one_of(NAMES, st.text(CHARACTERS, max_size=3)),
    "whole": st.integers(-3, 12),
    "float": FLOATS,
    "flag": st.booleans(),
}
CELLS = {"text": TEXTS, "whole": st.integers(-99, 2**40), "float": FLOATS, "flag": st.booleans()}


@st.composite
def tables(draw):
    """A kind of file, how it is written, and its columns, each of one type with gaps."""
    size = draw(st.integers(1, 6))

    def column(cells):
        cell = cells[draw(st.sampled_from(list(cells)))]
        gaps = st.one_of(cell, st.none()) if draw(st.integers(0, 3)) == 0 else cell
        return draw(st.lists(gaps, min_size=size, max_size=size))

    texts = CELLS if draw(st.integers(0, 3)) == 0 else {"text": TEXTS}
    manner = {
        "delimiter": draw(st.sampled_from(",;\t|")),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "end": draw(st.sampled_from(["\n", "\r\n"])),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
    }
    kind = draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    return kind, manner, column(texts), column(LABELS)


def write(path, kind, manner, rows):
    """Writes a table; returns the number of each row."""
    if kind == "parquet":
        columns = {name: [row[i] for row in rows] for i, name in enumerate(("text", "label"))}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return list(range(1, len(rows) + 1))
    with path.open("w", encoding=manner["encoding"], newline="") as file:
        if kind == "jsonl":
            for row in rows:
                file.write(json.dumps(dict(zip(("text", "label"), row, strict=True))))
                file.write(manner["end"])
            return list(range(1, len(rows) + 1))
        writer = csv.writer(
            file,
            delimiter=manner["delimiter"],
            quoting=manner["quoting"],
            # Python 3.11 quotes a carriage return only if it is part of the line's end
            lineterminator="\r\n" if manner["quoting"] == csv.QUOTE_MINIMAL else manner["end"],
        )
        writer.writerows([("text", "label"), *rows])
    numbers = [2]
    for row in rows:
        numbers.append(numbers[-1] + 1 + sum(len(re.findall(r"\r\n|\r|\n", str(c))) for c in row))
    return numbers[:-1]


def name_of(value):
    """The class of a label, None where it has none; from the documentation alone."""
    if value is None or value != value or not str(value).strip():
        return None
    plain = re.fullmatch(r"[+-]?(0|[1-9][0-9]*)(\.0+)?", str(value).strip())
    return str(int(Decimal(str(value).strip()))) if plain else str(value)


def is_blank(value):
    return value is None or value != value or not str(value).strip()


def is_decimal(name):
    return re.fullmatch(r"-?[0-9]*[.][0-9]+|-?[0-9.]+e[+-]?[0-9]+", name) is not None


def expected_refusals(rows, numbers):
    """The cells (row, column) of which one must be refused; nothing if the table is good."""
    cells = {
        (number, "text") for number, (text, _) in zip(numbers, rows, strict=True) if is_blank(text)
    } | {
        (number, "label")
        for number, (_, label) in zip(numbers, rows, strict=True)
        if name_of(label) is None
    }
    if cells:
        return cells
    names = [name_of(label) for _, label in rows]
    where = list(zip(numbers, names, strict=True))
    if unclear := {
        (n, "label") for n, a in where for b in names if a != b and a.strip() == b.strip()
    }:
        return unclear
    if all(is_decimal(one) or re.fullmatch("-?(0|[1-9][0-9]*)", one) for one in names):
        return {(number, "label") for number, one in where if is_decimal(one)}
    return set()


def check(table, path):
    kind, manner, texts, labels = table
    path = path.with_suffix(f".{kind}")
    if kind == "csv":  # where the word nan is a word: what is missing is written as nothing
        texts, labels = ([None if one != one else one for one in c] for c in (texts, labels))
    rows = list(zip(texts, labels, strict=True))
    numbers = write(path, kind, manner, rows)
    bad = expected_refusals(rows, numbers)
    names = [name_of(label) for label in labels]
    flags = all(str(name).casefold() in {"true", "false"} for name in names)
    names = [name.capitalize() for name in names] if flags else names
    task = TextFiles(train=str(path))
    try:
        read = task.examples("train")
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        if found := re.search(r"row (\d+), column '(\w+)': ", str(error)):
            assert (int(found[1]), found[2]) in bad, str(error)
        else:  # a column of one class has no bad row
            assert not bad and len(set(names)) == 1 and "holds nothing but" in str(error)
        return
    assert not bad and len(set(names)) > 1
    spell = (lambda cell: str(cell).lower()) if kind != "csv" else str
    assert [one["text"] for one in read] == [
        spell(text) if isinstance(text, bool) else str(text) for text in texts
    ]
    assert [task.labels[one["label"]] for one in read] == names
    assert sorted(task.labels) == sorted(set(names))
    whole = [one for one in task.labels if re.fullmatch("-?(0|[1-9][0-9]*)", one)]
    assert whole == sorted(whole, key=int)
    others = [one for one in task.labels if one not in whole]
    assert others == sorted(others)


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(table=tables())
def test_a_table_is_read_as_written_or_refused(table, tmp_path_factory):
    check(table, tmp_path_factory.getbasetemp() / "quick")


@pytest.mark.slow
@settings(
    max_examples=10_000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(table=tables())
def test_ten_thousand_tables_are_read_as_written_or_refused(table, tmp_path_factory):
    check(table, tmp_path_factory.getbasetemp() / "slow")
