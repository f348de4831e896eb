"""GLUE and SQuAD 2 from folders of the hub's layout."""

import datasets
import numpy as np
import pytest

from fmerge.data import Glue, Squad2
from fmerge.data.glue import TASKS, bin_of
from fmerge.errors import UserError
from tests import hub_layout, tiny


def test_labels_and_columns_are_those_of_the_hub():
    assert {task: list(one.labels) for task, one in TASKS.items()} == hub_layout.LABELS
    assert {task: list(one.columns) for task, one in TASKS.items()} == hub_layout.TEXT


@pytest.mark.parametrize("task", hub_layout.TEXT)
def test_examples_of_every_task(task, tmp_path):
    data = Glue(task, hub_layout.glue(tmp_path, task))
    examples = data.examples("train")
    assert [one["text"] for one in examples] == tiny.sentences(8, 0)
    if len(hub_layout.TEXT[task]) == 2:
        assert [one["text_pair"] for one in examples] == tiny.sentences(8, 1)
    else:
        assert "text_pair" not in examples[0]
    classes = len(hub_layout.LABELS[task])
    expected = [1.4 * i % 5 if task == "stsb" else i % classes for i in range(8)]
    assert [one["label"] for one in examples] == pytest.approx(expected)


def test_the_validation_split_is_halved_or_used_twice(tmp_path):
    source = hub_layout.glue(tmp_path, "rte", (8, 7, 4))
    everything = tiny.sentences(7, 10)

    def texts(split, **options):
        return [one["text"] for one in Glue("rte", source, **options).examples(split)]

    validation, test = texts("validation"), texts("test")
    assert len(validation) == 3 and sorted(validation + test) == sorted(everything)
    assert validation == texts("validation") != texts("validation", seed=1)
    for split in ("validation", "test"):
        assert texts(split, test="validation") == everything
    few = texts("validation", test="validation", validation=4)
    assert len(few) == 4 and [text for text in everything if text in few] == few
    assert len(texts("test", validation=2)) == 4
    assert len(texts("train", train=3)) == 3


def test_matched_and_mismatched_genres(tmp_path):
    source = hub_layout.glue(tmp_path, "mnli")
    found = [Glue("mnli", source, "validation", matched=m).examples("test") for m in (True, False)]
    assert [one[0]["text"] for one in found] == [tiny.sentences(6, s)[0] for s in (10, 20)]


def test_an_expert_that_does_not_name_its_labels(tmp_path):
    order = ["contradiction", "entailment", "neutral"]
    data = Glue("mnli", hub_layout.glue(tmp_path, "mnli"), labels=order)
    assert data.labels == order
    assert [one["label"] for one in data.examples("train")[:3]] == [1, 2, 0]
    with pytest.raises(UserError, match="labels are .'a'., but must be .'entailment'"):
        Glue("mnli", labels=["a"])


def test_scores_are_binned_as_in_the_reference(tmp_path):
    scores = np.round(np.arange(0, 5.001, 0.05), 2)
    edges = np.round(np.linspace(0, 5, 26), 6)[1:-1]  # the reference's, but for its rounding
    assert [bin_of(float(one), 25) for one in scores] == np.digitize(scores, edges).tolist()
    data = Glue("stsb", hub_layout.glue(tmp_path, "stsb"), bins=25)
    assert len(data.labels) == 25 and (data.labels[0], data.labels[-1]) == ("0.1", "4.9")
    assert [one["label"] for one in data.examples("train")[:3]] == [0, 7, 14]


def test_spans_are_those_of_the_first_answer(tmp_path):
    data = Squad2(hub_layout.squad2(tmp_path), test="validation")
    for i, one in enumerate(data.examples("train")):
        first, last = one["label"]
        found = one["text_pair"][first : last + 1] if first >= 0 else None
        assert found == (None if i % 3 == 0 else "green moon")


def changed(change, splits=("train", "validation", "test")):
    """A folder of RTE whose rows were changed."""

    def make(folder):
        hub_layout.glue(folder, "rte")
        for split in splits:
            path = folder / f"rte/{split}-00000-of-00001.parquet"
            change(datasets.Dataset.from_parquet(str(path))).to_parquet(path)
        return str(folder)

    return make


def relabelled(label):
    kinds = {float: "float64", str: "string"}
    plain = datasets.Value(kinds.get(type(label), "int64"))
    return changed(lambda rows: rows.cast_column("label", plain).map(lambda _: {"label": label}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (relabelled(-1), r"its validation split, row 0: its label is hidden \(-1\)"),
        (relabelled(2), "its label is 2; known: 0 to 1"),
        (relabelled(0.5), "its label is 0.5; known: 0 to 1"),
        (relabelled(None), r"row 0: its label is hidden \(None\)"),
        (relabelled("yes"), "its label is 'yes', but must be a number"),
        (changed(lambda rows: rows.remove_columns("sentence2")), "has no column 'sentence2'"),
        (
            changed(lambda rows: rows.remove_columns("sentence2"), ["validation"]),
            "its validation split, row 0: its 'sentence2' is missing",
        ),
        (
            changed(
                lambda rows: rows.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
            ),
            r"has the labels \['no', 'yes'\], expected \['entailment', 'not_entailment'\]",
        ),
        (lambda folder: hub_layout.glue(folder, "cola"), "cannot read its validation split"),
    ],
)
def test_unfit_rows_are_refused(make, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        Glue("rte", make(tmp_path / "glue")).examples("validation")
    assert "\n" not in str(caught.value)


def test_a_whole_label_is_one_also_as_a_float(tmp_path):
    data = Glue("rte", relabelled(1.0)(tmp_path / "glue"), "validation")
    assert {one["label"] for one in data.examples("train")} == {1}
    assert {type(one["label"]) for one in data.examples("train")} == {int}


def test_unfit_options_are_refused():
    with pytest.raises(UserError, match="unknown task 'ax'; known: cola, mnli"):
        Glue("ax")
    with pytest.raises(UserError, match="only stsb has bins"):
        Glue("rte", bins=25)
    with pytest.raises(UserError, match="test is 'test', but the public test answers are hidden"):
        Glue("rte", test="test")
    with pytest.raises(UserError, match="train is 0"):
        Glue("rte", train=0)
