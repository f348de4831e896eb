"""The sentences on which examples estimated, chose and scored a merge."""

from types import SimpleNamespace

import pytest

from fmerge.fisher import FisherSettings
from fmerge.methods import Average, DFMerge, FisherMerge, RegMean
from fmerge.runs.data_provenance import split_facts

SIZES = {"train": 90, "validation": 40, "test": 25}
SPLITS = "validation examples, used to choose: x 40, y 41; test examples, used to score: x 25, y 26"


def size(task, split, most=None):
    there = SIZES[split] + (task == "y")
    return there if most is None else min(most, there)


def facts(method, origins=None, **settings):
    data = SimpleNamespace(size=size)
    return split_facts(data, method, FisherSettings(**settings), origins, ["x", "y"])


def test_a_method_that_needs_nothing_tells_the_splits_alone():
    assert facts(Average()) == [SPLITS]


@pytest.mark.parametrize(
    ("split", "overlap"),
    [
        ("train", "none of them used to choose or to score"),
        ("validation", "ALSO USED TO CHOOSE; --fisher.split train avoids this"),
        ("test", "ALSO USED TO SCORE; give another --fisher.split"),
    ],
)
@pytest.mark.parametrize(
    ("method", "label"), [(FisherMerge(), "Fishers"), (DFMerge(), "Fishers"), (RegMean(), "Grams")]
)
def test_what_was_estimated_on_which_split(method, label, split, overlap):
    there = SIZES[split]
    assert facts(method, split=split) == [
        SPLITS,
        f"{label}: estimated on examples of the {split} split: x {there}, y {there + 1}; {overlap}",
    ]


def test_no_more_examples_than_were_asked_for_or_are_there():
    assert "split: x 30, y 30; none" in facts(FisherMerge(), examples=30)[1]
    assert "split: x 90, y 91; none" in facts(FisherMerge(), examples=1000)[1]


def test_until_may_use_fewer_for_a_fisher():
    assert "at most x 90, y 91; none" in facts(DFMerge(), until=0.1)[1]
    assert "at most" not in facts(RegMean(), until=0.1)[1]  # a Gram has no such error


def test_given_fishers_tell_their_origins():
    origins = {"x": "f.h5, of 3 examples", "y": "g.h5, of 4"}
    given = "Fishers: given, `x` f.h5, of 3 examples; `y` g.h5, of 4"
    assert facts(FisherMerge(), origins) == [SPLITS, given]
    assert "Grams: estimated" in facts(RegMean(), origins)[1]  # no file gives these
    assert facts(Average(), origins) == [SPLITS]
    assert "estimated" in facts(FisherMerge(), {})[1]
