"""What methods need of an expert: which, how often it is estimated, and how much it takes."""

from types import SimpleNamespace

import pytest
import torch

from fmerge.evaluation.statistics import (
    STATISTICS,
    Fisher,
    LinearGrams,
    MovingFisher,
    statistic_of,
)
from fmerge.fisher import FisherSettings
from fmerge.methods import Average, DFMerge, FisherMedian, FisherMerge, RegMean
from fmerge.methods.composition import Transformed
from fmerge.methods.transforms import Trim
from fmerge.modules import TextClassifier
from tests import tiny

PLAIN, CURVE = FisherSettings(), FisherSettings(curve=4)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (Average(), None),
        (FisherMerge(), Fisher),
        (FisherMedian(), Fisher),
        (DFMerge(), MovingFisher),
        (RegMean(), LinearGrams),
        # what the method inside needs
        (Transformed(Trim(0.5, per_tensor=True), DFMerge()), MovingFisher),
    ],
)
def test_of_methods(method, kind):
    found = statistic_of(method)
    assert (None if found is None else type(found)) is kind


def test_what_each_says_of_itself():
    told = {
        name: (one.label, one.from_files, one.moves, one.cost) for name, one in STATISTICS.items()
    }
    assert told == {
        "fisher": ("Fishers", True, False, "Fisher"),
        "moving fisher": ("Fishers", True, True, "Fisher"),
        "gram": ("Grams", False, False, "score"),
    }


@pytest.mark.parametrize(
    ("name", "settings", "passes", "copies"),
    [
        ("fisher", PLAIN, 1, 1),
        ("fisher", CURVE, 1, 1),
        ("gram", CURVE, 1, 1),
        ("moving fisher", PLAIN, 7, 1),  # one for each of seven merges
        ("moving fisher", CURVE, 4, 4),  # one for each node
    ],
)
def test_passes_and_copies(name, settings, passes, copies):
    assert STATISTICS[name].passes(settings, bodies=7) == passes
    assert STATISTICS[name].copies(settings) == copies


def test_sizes_in_bytes():
    network = tiny.classifier(tiny.bert_config())
    body = TextClassifier().body(network)
    entries = sum(tensor.numel() for tensor in body.values())
    assert STATISTICS["fisher"].size(network, body) == 4 * entries
    halves = {name: tensor.half() for name, tensor in body.items()}
    assert STATISTICS["moving fisher"].size(network, halves) == 4 * entries
    # per layer query, key, value, output and up of 16 inputs, down of 24; the pooler of 16
    assert STATISTICS["gram"].size(network, body) == 4 * (2 * (5 * 16**2 + 24**2) + 16**2)


def test_estimates_ask_the_evaluator_for_the_body_alone():
    asked, body = [], {"body": torch.zeros(1)}
    values = {"head": torch.ones(1), "body": torch.full((1,), 2.0)}

    def fisher(*args):
        asked.append(args)
        return SimpleNamespace(values=values)

    evaluator = SimpleNamespace(fisher=fisher, grams=lambda *args: ("grams", *args))
    for name in ("fisher", "moving fisher"):
        found = STATISTICS[name].estimate(evaluator, "x", PLAIN, body)
        assert found == {"body": values["body"]}
    assert asked == [("x", PLAIN, body)] * 2
    assert STATISTICS["gram"].estimate(evaluator, "x", PLAIN, body) == ("grams", "x", PLAIN, body)
