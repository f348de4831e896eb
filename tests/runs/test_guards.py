"""The plain average beside every search, and what is said of a merge that is below it."""

import json
from types import SimpleNamespace

import pytest
import torch

import fmerge
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import classes_of
from fmerge.methods import (
    TIES,
    Average,
    DFMerge,
    FisherMerge,
    Isotropic,
    MergeMethod,
    RegMean,
    TaskArithmetic,
)
from fmerge.runs.guards import average_of, below_average
from fmerge.search import AxSearch, Fixed, Grid, SearchSpace, Sobol, Trial
from tests import tiny

AVERAGE = Trial(2, {}, 0.953, {"t": 0.953}, stage="average")


def sentence(method, best, search=None, others=(AVERAGE,), examples=30, estimated=True):
    search = search or AxSearch(trials=60)
    search.start(SearchSpace(["a", "b"], scale_invariant=method.scale_invariant))
    run = SimpleNamespace(
        method=method,
        settings=SimpleNamespace(examples=examples),
        estimated=object() if estimated else None,
    )
    return below_average(run, search, best, [best, *others])


def test_a_merge_below_the_average_is_said_with_the_likely_knob():
    best = Trial(0, {"a": 1.0, "b": 0.05}, 0.768, {"t": 0.768})
    assert sentence(FisherMerge(), best) == (
        "BELOW THE PLAIN AVERAGE on validation: FisherMerge has 76.8, the plain average 95.3 "
        "(trial 2); try --method.normalize false, which weighs the experts' Fishers otherwise; or "
        "more --fisher.examples than 30; or another --method"
    )
    assert "--method.normalize true" in sentence(FisherMerge(normalize=False), best)
    assert "a larger --method.density; or a search of more trials than 4; or another" in sentence(
        TIES(), best, Sobol(trials=4), estimated=False
    )
    assert "other --optimizer.bounds, as the coefficient of a is at its own" in sentence(
        TaskArithmetic(), best, estimated=False
    )
    assert "--method.damping 0.1" in sentence(DFMerge(), best)


def test_a_merge_as_good_as_the_average_is_not_warned_of():
    assert sentence(FisherMerge(), Trial(0, {"a": 1, "b": 1}, 0.953, {"t": 0.953})) == ""
    assert sentence(FisherMerge(), Trial(0, {"a": 1, "b": 1}, 0.5, {"t": 0.5}), others=()) == ""
    assert sentence(FisherMerge(), Trial(0, {"a": 1, "b": 1})) == ""  # nothing was scored


@pytest.mark.parametrize(
    ("method", "coefficients", "found"),
    [
        (TaskArithmetic(), {"a": 0.5, "b": 0.5}, True),
        (TaskArithmetic(), {"a": 0.3, "b": 0.3}, False),
        (TaskArithmetic(), {"a/x": 0.5, "a/y": 0.5, "b/x": 0.5, "b/y": 0.5}, True),
        (Isotropic(), {"a": 0.3, "b": 0.3}, True),
        (Isotropic(), {"a": 0.3, "b": 0.4}, False),
        (FisherMerge(), {"a": 0.5, "b": 0.5}, False),
    ],
)
def test_a_trial_of_the_search_may_be_the_average(method, coefficients, found):
    trial = Trial(0, coefficients, 0.5, {"t": 0.5})
    assert (average_of([trial], method) is trial) == found
    assert average_of([trial, AVERAGE], method) is (trial if found else AVERAGE)


def test_the_methods_that_hold_the_average_do():
    generator = torch.Generator().manual_seed(0)
    base, *experts = ({"w": torch.randn(4, generator=generator)} for _ in range(4))
    expected = Average().merge(None, experts, [])["w"]
    for method in (TaskArithmetic(), Isotropic()):
        assert method.holds_average
        torch.testing.assert_close(method.merge(base, experts, [1 / 3] * 3)["w"], expected)
    assert not any(one.holds_average for one in (FisherMerge(), TIES(), RegMean(), DFMerge()))


def merge(zoo, output, search, method=None, **options):
    tasks = {
        name: TextFiles(**files, labels=tiny.LABELS[name]) for name, files in zoo.tasks.items()
    }
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[fmerge.MergeOptimizer(search)],
    )  # fmt: skip
    return trainer.merge(
        fmerge.modules.TextClassifier(), MultiTask(tasks, 16), experts=zoo.experts, base=zoo.base,
        method=method or TIES(), output=output, **options,
    )  # fmt: skip


def records(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_the_average_follows_the_search_and_makes_way_for_more_trials(zoo, tmp_path, capsys):
    """It is scored as a merge by Average is, is built by its index, and is never chosen."""
    report = merge(zoo, tmp_path / "out", Sobol(trials=2))
    found = records(tmp_path / "out")
    assert [one.get("stage") for one in found] == [None, None, "average"]
    assert found[2]["coefficients"] == {} and report.best.stage == ""
    alone = merge(zoo, tmp_path / "average", None, Average(), baselines="experts")
    assert found[2]["metrics"] == dict(alone.best.metrics)
    warned = alone.best.objective > report.best.objective
    assert ("BELOW THE PLAIN AVERAGE" in report.markdown()) == warned
    assert ("BELOW THE PLAIN AVERAGE" in capsys.readouterr().out) == warned
    more = merge(zoo, tmp_path / "out", Sobol(trials=3))
    after = records(tmp_path / "out")
    assert after[:2] == found[:2] and len(more.trials) == 4
    assert after[3] == found[2] | {"trial": 3}
    merge(zoo, tmp_path / "out", Sobol(trials=3), build=3)
    built = fmerge.load_params(tmp_path / "out" / "points" / "3" / "merged" / "colour")
    expected = fmerge.load_params(tmp_path / "average" / "merged" / "colour")
    assert all(built[name].equal(one) for name, one in expected.items())


DEFAULTS = sorted(classes_of(fmerge.methods, MergeMethod).keys() - {"Average", "Auto"})


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFAULTS)
def test_no_method_s_default_ends_below_the_average_in_silence(name, zoo, tmp_path, capsys):
    """Two sentence classifiers from CSV files."""
    method = fmerge.methods.__dict__[name]()
    search = Sobol(trials=2) if method.uses_coefficients else None
    report = merge(zoo, tmp_path / "out", search, method)
    average = average_of(report.trials, method)
    below = average.objective > report.best.objective
    assert ("BELOW THE PLAIN AVERAGE on validation" in report.markdown()) == below
    assert ("BELOW THE PLAIN AVERAGE on validation" in capsys.readouterr().out) == below


def test_a_search_that_was_at_the_average_scores_it_once(zoo, tmp_path):
    merge(zoo, tmp_path / "out", Grid(points=3), TaskArithmetic())
    assert [one.get("stage") for one in records(tmp_path / "out")] == [None] * 3


def test_who_needs_no_average_is_spared_it(zoo, tmp_path):
    half = Fixed({"colour": 0.5, "animal": 0.25})  # no search
    merge(zoo, tmp_path / "fixed", half)
    assert len(records(tmp_path / "fixed")) == 1


def test_a_merge_below_the_average_is_said_whatever_rows_are_asked_for(zoo, tmp_path, capsys):
    merge(zoo, tmp_path / "out", Sobol(trials=1), baselines="experts")
    found = records(tmp_path / "out")
    assert [one.get("stage") for one in found] == [None, "average"]
    below = found[1]["objective"] > found[0]["objective"]
    assert ("BELOW THE PLAIN AVERAGE" in capsys.readouterr().out) == below
