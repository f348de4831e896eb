"""Classification from tables: labels, texts, several files; each bad cell by file, row, column."""

import json

import pandas
import pytest

from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError


def write(path, rows):
    """Rows (text, label, …) as a table of the path's kind; CSV cells must need no quotes."""
    names = ["text", "label", "pair"][: len(rows[0])]
    if path.suffix == ".parquet":
        pandas.DataFrame(rows, columns=names).to_parquet(path)
    elif path.suffix == ".csv":
        lines = [names, *rows]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    else:
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines))
    return str(path)


def task(tmp_path, rows, name="x.csv", **options):
    return TextFiles(train=write(tmp_path / name, rows), **options)


def numbers(found, split="train"):
    return [one["label"] for one in found.examples(split)]


def refused(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


ENDINGS = ("x.csv", "x.jsonl", "x.parquet")


@pytest.mark.parametrize("name", ENDINGS)
def test_whole_numbers_are_classes_in_the_order_of_numbers(tmp_path, name):
    found = task(tmp_path, [("a", i) for i in reversed(range(12))], name)
    assert found.labels == [str(i) for i in range(12)]
    assert numbers(found) == list(reversed(range(12)))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["-1", "1", "0"], ["-1", "0", "1"]),
        (["10", "9", "-2", "-10"], ["-10", "-2", "9", "10"]),
        (["01", "2", "10"], ["01", "2", "10"]),
        (["007", "7"], ["007", "7"]),
        (["10", "9", "other", "#"], ["#", "9", "10", "other"]),
        (["None", "NA", "null", "nan"], ["NA", "None", "nan", "null"]),
        (["true", "mostly-true", "false"], ["false", "mostly-true", "true"]),
        (["TRUE", "false", "True"], ["False", "True"]),
        (["1", "1.0", "+1", "2.00"], ["1", "2"]),
        (["v1", "v10", "v2"], ["v1", "v10", "v2"]),
    ],
)
def test_classes_of_csv_labels(tmp_path, labels, classes):
    assert task(tmp_path, [("a", label) for label in labels]).labels == classes


def test_one_class_is_one_class_in_every_kind_of_file(tmp_path):
    """A column of whole numbers with a gap is one of floats in Parquet."""
    found = TextFiles(
        train=write(tmp_path / "a.csv", [("a", 1), ("b", 10)]),
        validation=write(tmp_path / "b.parquet", [("a", 1.0), ("b", 10.0)]),
        test=write(tmp_path / "c.jsonl", [("a", "1.0"), ("b", 10), ("c", 9)]),
    )
    assert found.labels == ["1", "9", "10"]
    assert [numbers(found, split) for split in ("train", "validation", "test")] == [
        [0, 2], [0, 2], [0, 2, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_booleans_are_two_classes(tmp_path, name):
    rows = [("a", True), ("b", False), ("c", True)]
    assert task(tmp_path, rows, name).labels == ["False", "True"]
    for labels in (None, ["no", "yes"], ["false", "true"]):
        assert numbers(task(tmp_path, rows, name, labels=labels)) == [1, 0, 1]
    assert numbers(task(tmp_path, rows, name, labels=["True", "False"])) == [0, 1, 0]


def test_given_labels_are_compared_as_numbers_where_they_are(tmp_path):
    rows = [("a", "1.0"), ("b", "2")]
    assert numbers(task(tmp_path, rows, labels=["2", "1"])) == [1, 0]
    # names that are numbers: 0 is no index of one of them
    refused(
        lambda: task(tmp_path, [("a", 0), ("b", 1)], labels=["1", "2"]).examples("train"),
        r"x.csv, row 2, column 'label': unknown label '0'; known: 1, 2",
    )
    for labels, message in [
        (["a"], "labels are .'a'., but a classification needs two or more; for a regress"),
        (["1", "1.0"], "labels have '1' twice"),
        (["a", " "], "labels have one that is empty"),
    ]:
        refused(lambda labels=labels: task(tmp_path, rows, labels=labels), message)


@pytest.mark.parametrize(
    ("name", "rows", "row"),
    [
        ("x.csv", [("a", 0), ("b", "")], 3),
        ("x.csv", [("a", 0), ("b", " "), ("c", 1)], 3),
        ("x.csv", [("a", 0), ("b",)], 3),
        ("x.jsonl", [("a", 0), ("b", None)], 2),
        ("x.jsonl", [("a", "pos"), ("b", "")], 2),
        ("x.jsonl", [("a", 0), ("b", float("nan"))], 2),
        ("x.json", [("a", 0), ("b", None)], 2),
        ("x.parquet", [("a", "pos"), ("b", None)], 2),
        ("x.parquet", [("a", 1), ("b", 0), ("c", None)], 3),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_label_is_refused_in_every_split(tmp_path, name, rows, row, split):
    good = write(tmp_path / "good.csv", [("a", 0), ("b", 1)])
    files = dict.fromkeys(("train", "validation", "test"), good)
    bad = str(write(tmp_path / name, rows))
    for labels in (None, ["neg", "pos"]):
        data = MultiTask({"t": TextFiles(**files | {split: bad}, labels=labels)})
        refused(
            lambda data=data: (data.labels, data.loaders("validation")),
            rf"{name}, row {row}, column 'label': has no label; give it one, or remove the row",
        )


@pytest.mark.parametrize("name", ENDINGS)
def test_scores_are_no_classes(tmp_path, name):
    rows = [("a", 0.5), ("b", 1.25), ("c", 3.0)]
    refused(
        lambda: task(tmp_path, rows, name).labels,
        r"column 'label': holds 0.5, a number that is not whole, as of a regression; set labels",
    )
    listed = task(tmp_path, rows, name, labels=["3", "1.25", "0.5"])
    assert numbers(listed) == [2, 1, 0]


def test_one_class_alone_is_refused(tmp_path):
    for label in ("pos", "1", "true"):
        refused(
            lambda label=label: task(tmp_path, [("a", label), ("b", label)]).labels,
            f"x.csv: column 'label' holds nothing but '{label}', but a classification needs two",
        )
    refused(
        lambda: task(tmp_path, [("a", "pos"), ("b", "pos "), ("c", "neg")]).labels,
        r"row 3, column 'label': the label 'pos ' differs from 'pos' by white space alone",
    )


def test_values_that_are_no_class_are_refused(tmp_path):
    rows = [("a", {"x": 1}), ("b", {"x": 2})]
    for name in ("x.jsonl", "x.parquet"):
        refused(
            lambda name=name: task(tmp_path, rows, name).labels,
            f"{name}, row 1, column 'label': holds dict, but one class is needed, or a list",
        )


def test_texts_are_those_of_the_file(tmp_path):
    texts = ["null", "12", "007", "1.50", "NA", "True", " x ", "None"]
    found = task(tmp_path, [(text, i % 2) for i, text in enumerate(texts)])
    assert [one["text"] for one in found.examples("train")] == texts
    (tmp_path / "x.jsonl").write_text(
        '{"text": 1.50, "label": 0}\n{"text": true, "label": 1}\n{"text": "2024-01-02", "label": 1}'
    )
    found = TextFiles(train=str(tmp_path / "x.jsonl"))
    assert [one["text"] for one in found.examples("train")] == ["1.50", "true", "2024-01-02"]
    found = task(tmp_path, [(12, 0), (13, 1)], "x.parquet")
    assert [one["text"] for one in found.examples("train")] == ["12", "13"]


@pytest.mark.parametrize(
    ("name", "text", "row", "message"),
    [
        ("x.csv", "", 3, "is empty"),
        ("x.csv", "  ", 3, "is empty"),
        ("x.jsonl", None, 2, "is empty"),
        ("x.jsonl", "", 2, "is empty"),
        ("x.jsonl", ["a"], 2, "holds list, but a text is needed"),
        ("x.parquet", None, 2, "is empty"),
        ("x.parquet", "\n", 2, "is empty"),
    ],
)
def test_a_missing_text_is_refused(tmp_path, name, text, row, message):
    rows = [("a", 0), (text, 1)]
    refused(
        lambda: task(tmp_path, rows, name).examples("train"),
        f"{name}, row {row}, column 'text': {message}",
    )


def test_an_empty_second_text_is_one_where_it_is_no_missing_one(tmp_path):
    rows = [("a", 0, "b"), ("c", 1, "")]
    found = task(tmp_path, rows, "x.jsonl", text_pair="pair")
    assert [one["text_pair"] for one in found.examples("train")] == ["b", ""]
    refused(
        lambda: task(tmp_path, rows, text_pair="pair").examples("train"),
        "x.csv, row 3, column 'pair': is empty",
    )


def test_several_files_are_one_split(tmp_path):
    one = write(tmp_path / "part-1.parquet", [("a", 10), ("b", 9)])
    two = write(tmp_path / "part-2.parquet", [("c", 9)])
    three = write(tmp_path / "part.csv", [("d", "9.0")])
    pattern = str(tmp_path / "part-*.parquet")
    for given in ([one, two, three], [pattern, three]):
        found = TextFiles(train=given)
        assert [(one["text"], one["label"]) for one in found.examples("train")] == [
            ("a", 1), ("b", 0), ("c", 0), ("d", 0),
        ]  # fmt: skip
    for given, message in [
        ([one, str(tmp_path / "no.csv")], "no.csv: no such file"),
        (str(tmp_path / "no-*.csv"), "no-[*].csv: no such file"),
        ([one, pattern], "part-1.parquet: is given twice for one split"),
    ]:
        refused(lambda given=given: TextFiles(train=given), message)
    (tmp_path / "other.csv").write_text("sentence,label\na,1\n")
    refused(
        lambda: TextFiles(train=[one, str(tmp_path / "other.csv")]).labels,
        "other.csv: has no column 'text'; its columns: label, sentence",
    )


def test_columns_are_named(tmp_path):
    (tmp_path / "x.csv").write_text("sentence;gold;note\na;0;\nb, c;1;x\n")
    found = TextFiles(test=str(tmp_path / "x.csv"), text="sentence", label="gold")
    assert [dict(one) for one in found.examples("test")] == [
        {"text": "a", "label": 0},
        {"text": "b, c", "label": 1},
    ]
    assert found.has("test") and not found.has("train")
