"""``--method Auto``: a race, a search over methods, and the best of all trials."""

import json

import pytest

import fmerge
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods.auto import Auto
from fmerge.runs.portfolio import search_of
from fmerge.search import AxSearch, Sobol
from tests import tiny


def merge(zoo, output, trials=4, portfolio=("TaskArithmetic", "TIES", "FisherMerge"), **options):
    tasks = {
        name: TextFiles(**files, labels=tiny.LABELS[name]) for name, files in zoo.tasks.items()
    }
    search = AxSearch(trials=trials, initial_trials=1)
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[MergeOptimizer(search)],
    )  # fmt: skip
    return trainer.merge(
        fmerge.modules.TextClassifier(), MultiTask(tasks, 16), experts=zoo.experts,
        method=Auto(list(portfolio)), output=output, **{"base": zoo.base, **options},
    )  # fmt: skip


def records(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_every_method_is_raced_and_the_best_is_saved(zoo, tmp_path):
    report = merge(zoo, tmp_path / "out", trials=5)
    found = records(tmp_path / "out")
    assert [one["method"] for one in found[:4]] == [
        "Average", "TaskArithmetic", "TIES", "FisherMerge",
    ]  # fmt: skip
    assert [set(one["coefficients"].values()) for one in found[:4]] == [{0.5}, {0.3}, {0.5}, {0.5}]
    assert found[4]["method"] in {"TaskArithmetic", "TIES", "FisherMerge"}
    best = max(found, key=lambda one: (one["objective"], -one["trial"]))
    assert report.best.index == best["trial"] and report.search.method == best["method"]
    text = report.markdown()
    assert (
        f"Auto, race: 4 trials, a method each: Average {100 * found[0]['objective']:.1f}, " in text
    )
    assert f"Auto, search: 1 trials of {found[4]['method']}; its best is" in text
    # the very merge by that method alone
    coefficients = best["coefficients"] if best["method"] != "Average" else None
    merge_alone(zoo, tmp_path / "alone", best["method"], coefficients)
    for task in zoo.experts:
        ours = fmerge.load_params(tmp_path / "out" / "merged" / task)
        alone = fmerge.load_params(tmp_path / "alone" / "merged" / task)
        assert all(ours[name].equal(one) for name, one in alone.items())


def merge_alone(zoo, output, name, coefficients):
    tasks = {
        task: TextFiles(**files, labels=tiny.LABELS[task]) for task, files in zoo.tasks.items()
    }
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.merge(
        fmerge.modules.TextClassifier(), MultiTask(tasks, 16), experts=zoo.experts,
        method=getattr(fmerge.methods, name)(), output=output, base=zoo.base,
        coefficients=coefficients, baselines="experts",
    )  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_portfolio_goes_on_to_the_same_trials(zoo, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    merge(zoo, whole, trials=9, baselines="experts")
    merge(zoo, cut, trials=3, baselines="experts")
    report = merge(zoo, cut, trials=9, baselines="experts")
    assert records(cut) == records(whole) and len(report.trials) == 9


def test_any_trial_is_built_by_its_method(zoo, tmp_path):
    merge(zoo, tmp_path / "out", trials=4, baselines="experts")
    built = merge(zoo, tmp_path / "out", trials=4, baselines="experts", build=2)
    assert built.search.method == "TIES" and built.best.index == 2


def test_without_a_base_the_default_portfolio_is_smaller():
    method = Auto()
    assert list(method.methods)[:3] == ["Average", "TaskArithmetic", "TIES"] and method.needs_base
    method.with_base(False)
    assert list(method.methods) == ["Average", "FisherMerge", "RegMean"]
    assert not method.needs_base and method.statistic == "fisher"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Auto([]), "portfolio: is empty, so that there is nothing to choose from"),
        (lambda: Auto(["Foo"]).methods, "portfolio: unknown method 'Foo'; known: Average, Bread"),
        (lambda: Auto(["no.such.Method"]).methods, "portfolio: no.such.Method cannot be imported"),
        (lambda: Auto(leaders=0), "leaders: is 0"),
        (
            lambda: search_of(Auto(), MergeOptimizer(Sobol())),
            "Sobol: is no search over methods; leave --optimizer.search out",
        ),
        (
            lambda: search_of(Auto(), MergeOptimizer(racing=True)),
            "--optimizer.racing: is of a single method; leave it out with Auto",
        ),
        (
            lambda: search_of(Auto(), MergeOptimizer(groups=2)),
            "--optimizer.groups: is of a single method",
        ),
    ],
)
def test_what_is_no_portfolio_is_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_portfolio_needs_scores(zoo, tmp_path):
    trainer = fmerge.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(UserError, match="PortfolioSearch: needs data to score its trials on"):
        trainer.merge(
            fmerge.modules.TextClassifier(), experts=zoo.experts, base=zoo.base, method=Auto(),
            output=tmp_path / "out",
        )  # fmt: skip
