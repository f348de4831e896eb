"""CSV, JSON lines and Parquet as they are written by others: delimiters, encodings, damage."""

import json
import pickle

import pandas
import pytest

from fmerge.data.tables import find_files, read_table, with_numbers
from fmerge.errors import UserError


def rows(path, content, columns=("text", "label")):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(row.number, *row.values.values()) for row in read_table(path, columns, "train")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_that_of_the_header(tmp_path, delimiter):
    content = f'text{delimiter}label\n"a{delimiter}b"{delimiter}1\nc{delimiter}2\n'
    assert rows(tmp_path / "x.csv", content) == [(2, f"a{delimiter}b", "1"), (3, "c", "2")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_that_name_themselves_are_read(tmp_path, encoding, end):
    content = f"text,label{end}réd ü,1{end}".encode(encoding)
    assert rows(tmp_path / "x.csv", content) == [(2, "réd ü", "1")]
    if end != "\r":
        line = f'{{"text": "réd", "label": 1}}{end}'.encode(encoding)
        assert rows(tmp_path / "x.jsonl", line) == [(1, "réd", 1)]


def test_rows_are_numbered_as_an_editor_does(tmp_path):
    content = 'text,label\n"a\nb",1\n\nc,2\n"d ""e""",3\n'
    assert rows(tmp_path / "x.csv", content) == [(2, "a\nb", "1"), (5, "c", "2"), (6, 'd "e"', "3")]
    lines = '{"text": "a\u2028b", "label": 1}\n\n{"text": "c", "label": null}\n'
    assert rows(tmp_path / "x.jsonl", lines) == [(1, "a\u2028b", 1), (3, "c", None)]


def test_a_long_text_is_read(tmp_path):
    text = "long " * 100_000
    assert rows(tmp_path / "x.csv", f"text,label\n{text},1\n") == [(2, text, "1")]


def test_layouts_of_json(tmp_path):
    table = [{"text": "a", "label": 1}, {"label": 2, "text": "b", "other": [1]}]
    expected = [(1, "a", 1), (2, "b", 2)]
    assert rows(tmp_path / "x.json", json.dumps(table, indent=1)) == expected
    assert rows(tmp_path / "x.json", "\n".join(map(json.dumps, table))) == expected
    assert rows(tmp_path / "x.json", json.dumps(table[0], indent=1)) == expected[:1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,label\nréd,1\n".encode("latin1"),
         r"x.csv, row 2: is not UTF-8 \(byte 0xe9\); save the file as UTF-8"),
        ("x.csv", "", "x.csv: is empty, but its first row must name its columns"),
        ("x.csv", "text,label\na,b,1\n", "row 2: has 3 cells, but the header has 2; quote texts"),
        ("x.csv", 'text,label\na,1\n"b,2\n', "row 3: is no CSV .unexpected end of data"),
        ("x.csv", "text,label,text\na,1,b\n", "x.csv: has 2 columns 'text'; rename one"),
        ("x.csv", "texts,label\na,1\n", "x.csv: has no column 'text'; its columns: label, texts"),
        ("x.csv", "a,1\nb,2\n", "x.csv: has no column 'text'; its columns: 1, a"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text"', "cannot read its train split .row 2 is"),
        ("x.jsonl", '{"text": "a", "label": 1}\n[1]', "row 2: holds list, but an object with"),
        ("x.jsonl", '{"text": "a"}', "x.jsonl: has no column 'label'; its columns: text"),
        ("x.jsonl", "[" * 100_000, "x.jsonl: cannot read its train split"),
        ("x.parquet", b"PAR1" * 9, "x.parquet: cannot read its train split"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        rows(tmp_path / name, content)
    assert "\n" not in str(caught.value)


def test_a_trailing_delimiter_is_no_cell(tmp_path):
    """An extra cell in every row would be taken for an index by pandas, which shifts the others."""
    assert rows(tmp_path / "x.csv", "text,label\na,1,\nb,2,\n") == [(2, "a", "1"), (3, "b", "2")]


def test_columns_of_parquet_that_are_not_needed_are_not_read(tmp_path):
    frame = pandas.DataFrame({"image": [b"x"], "text": ["a"], "label": [1]})
    frame.to_parquet(tmp_path / "x.PARQUET")
    assert find_files(str(tmp_path / "x.PARQUET"))
    (row,) = read_table(tmp_path / "x.PARQUET", ["text"], "train", ["label", "no"])
    assert row.values == {"text": "a", "label": 1}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2"], [1, -2]),
        (["0.5", "2.0"], [0.5, 2.0]),
        (["007", "7"], ["007", "7"]),
        (["1.50", "2"], ["1.50", "2"]),
        (["nan", "inf"], ["nan", "inf"]),
        (["1_0", "2"], ["1_0", "2"]),
        (["1", "x"], ["1", "x"]),
    ],
)
def test_columns_of_numbers_in_csv_are_numbers_that_render_as_before(tmp_path, cells, expected):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "".join(f"{cell},z\n" for cell in cells) + ",z\n")
    typed = [row.values["a"] for row in with_numbers(read_table(path, ["a", "b"], "train"))]
    assert typed == [*expected, None] and [str(one) for one in typed[:-1]] == cells


def test_flags_of_csv_are_true_or_false_and_render_as_before(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\ntrue,z\nFALSE,z\n")
    typed = [row.values["a"] for row in with_numbers(read_table(path, ["a"], "train"))]
    assert [bool(one) for one in typed] == [True, False]
    assert [str(pickle.loads(pickle.dumps(one))) for one in typed] == ["true", "FALSE"]
