"""Several labels and numbers in tables: every way that they are written, and what is refused."""

import json

import pandas
import pytest

from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError

SETS = [["sad", "mad"], [], ["glad"], ["mad"]]
HOT = [[0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]]  # glad, mad, sad


def table(path, columns):
    frame = pandas.DataFrame({"text": list("abcd"), **columns})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    return str(path)


def refused(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def check(task, names=("glad", "mad", "sad"), hot=HOT):
    assert task.labels == list(names) and task.labels.kind == "labels"
    assert [one["label"] for one in task.examples("train")] == hot
    assert list(task.metrics) == ["micro_f1", "average_precision"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_lists_of_names(tmp_path, name):
    file = table(tmp_path / name, {"label": SETS})
    check(TextFiles(train=file))
    order = ["sad", "glad", "mad"]
    check(TextFiles(train=file, labels=order), order, [[h[2], h[0], h[1]] for h in HOT])


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_lists_of_numbers_of_named_labels(tmp_path, name):
    file = table(tmp_path / name, {"label": [[2, 1], [], [0], [1]]})
    check(TextFiles(train=file, labels=["glad", "mad", "sad"]))
    check(TextFiles(train=file), ["0", "1", "2"])


@pytest.mark.parametrize("kind", [bool, float])
@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_lists_of_a_flag_for_each_label(tmp_path, name, kind):
    file = table(tmp_path / name, {"label": [list(map(kind, one)) for one in HOT]})
    check(TextFiles(train=file, labels=["glad", "mad", "sad"]))
    message = "column 'label': holds 3 numbers, but one of 0 or 1 is needed for each of 0 labels"
    refused(lambda: TextFiles(train=file).labels, message)


def test_names_with_a_separator(tmp_path):
    texts = ["sad; mad", None, "glad", "mad"]
    for name in ("x.csv", "x.jsonl"):
        given = texts if name == "x.csv" else [one or "" for one in texts]
        check(TextFiles(train=table(tmp_path / name, {"label": given}), separator=";"))
    file = table(tmp_path / "y.jsonl", {"label": [*texts[:1], None, *texts[2:]]})
    refused(lambda: TextFiles(train=file, separator=";").labels, "row 2, column 'label': is empty")


@pytest.mark.parametrize("written", [(0, 1), ("no", "yes"), (False, True), (0.0, 1.0)])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_a_column_for_each_label(tmp_path, name, written):
    columns = {
        label: [written[one[k]] for one in HOT] for k, label in enumerate(["glad", "mad", "sad"])
    }
    file = table(tmp_path / name, columns)
    check(TextFiles(train=file, label=["glad", "mad", "sad"]))
    order = ["sad", "glad", "mad"]
    hot = [[h[2], h[0], h[1]] for h in HOT]
    check(TextFiles(train=file, label=["glad", "mad", "sad"], labels=order), order, hot)
    check(TextFiles(train=file, label=["mad"]), ["mad"], [[h[1]] for h in HOT])


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_numbers(tmp_path, name):
    file = table(tmp_path / name, {"score": [0.5, -2, 1e3, 4]})
    task = TextFiles(train=file, label="score", labels="number")
    assert task.labels == ["score"] and task.labels.kind == "number"
    assert [one["label"] for one in task.examples("train")] == [0.5, -2.0, 1000.0, 4.0]
    assert list(task.metrics) == ["pearson"]
    assert MultiTask({"t": task}).metrics == {"t": ("pearson",)}
    chosen = TextFiles(train=file, label="score", labels="number", metrics=["pearson", "neg_rmse"])
    assert chosen.metrics == ["pearson", "neg_rmse"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": [["a"], "b", [], []]}, {}, "row 2, column 'label': holds one label, but the ro"),
        ({"label": ["a", ["b"], "a", "b"]}, {}, "row 2, column 'label': holds a list of labels, b"),
        ({"label": [["a", "a"], [], [], []]}, {}, "row 1, column 'label': has the label 'a' twice"),
        ({"label": [["a", None], [], [], []]}, {}, "its list holds None, but names of labels"),
        ({"label": [[], [], [], []]}, {}, "column 'label' holds no label in any row; name all"),
        ({"label": [["a"], ["c"], [], []]}, {"labels": ["a", "b"]}, "row 2.*unknown label 'c'"),
        ({"label": ["1", "x", "2", "3"]}, {"labels": "number"}, "row 2.*holds x, which is no fini"),
        ({"label": [1, True, 2, 3]}, {"labels": "number"}, "row 2.*holds True, which is no finit"),
        ({"label": ["1", "inf", "2", ""]}, {"labels": "number"}, "row 2.*holds inf, which is no"),
        ({"label": [1, None, 2, 3]}, {"labels": "number"}, "row 2.*has no number; give it one"),
        ({"a": [1, 2, 0, 0], "b": 1}, {"label": ["a", "b"]}, "row 2, column 'a': holds 2, but mu"),
        ({"a": [1, None, 0, 0]}, {"label": ["a"]}, "row 2, column 'a': is empty, but must be 0 or"),
        ({"a": 1}, {"label": ["a", "b"]}, "has no column 'b'; its columns: a, text"),
        ({}, {"label": ["a", "a"]}, "label names the column 'a' twice"),
        ({}, {"label": []}, "label names no column"),
        ({}, {"label": ["a"], "labels": ["b"]}, "labels are .'b'., but must be the columns of la"),
        ({}, {"label": ["a"], "labels": "number"}, "several columns, each of one label's 0 or 1"),
        ({}, {"label": ["a"], "separator": ";"}, "several columns.*but separator is ';'"),
        ({}, {"labels": "number", "separator": ";"}, "labels is number, but separator is set"),
        ({}, {"separator": ""}, "separator is empty; give the text between two labels"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(tmp_path, columns, options, message):
    file = table(tmp_path / "x.jsonl", columns)
    refused(lambda: TextFiles(train=file, **options).examples("train"), message)
