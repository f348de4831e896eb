"""``--method Auto``: a race, a search over methods, and the best of all trials."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import fmerge
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import Auto
from fmerge.runs.clock import Clock
from fmerge.runs.polish_stage import PolishStage
from fmerge.runs.portfolio import search_of
from fmerge.runs.stages import Candidate
from fmerge.runs.training_settings import TrainingSettings
from fmerge.search import AxSearch, SearchSpace, Sobol, Trial
from tests import tiny

THREE = ("TaskArithmetic", "TIES", "FisherMerge")


def merge(zoo, output, trials=4, portfolio=THREE, steps=0, method=None, **options):
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
        method=method or Auto(list(portfolio), steps=steps), output=output,
        **{"base": zoo.base, **options},
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
    assert f"Auto, search: 1 trial of {found[4]['method']}; its best is" in text
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


def test_what_cannot_calibrate_a_model_is_left_out_by_name(zoo, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("fmerge.runs.finish.calibrate", broken)
    method = Auto(steps=0)  # of the default portfolio
    report = merge(zoo, tmp_path / "out", 9, method=method, baselines="experts", budget="1h")
    found = records(tmp_path / "out")
    failed = [one for one in found if one["status"] == "failed"]
    assert [one["method"] for one in failed] == ["RegMeanPP", "FeatCal"]
    reason = "cannot calibrate this model: shapes do not match"
    assert f"RegMeanPP failed (RegMeanPP {reason}), FeatCal failed (" in report.markdown()
    assert report.search.method not in {"RegMeanPP", "FeatCal"}


def test_any_trial_is_built_by_its_method(zoo, tmp_path):
    merge(zoo, tmp_path / "out", trials=4, baselines="experts")
    built = merge(zoo, tmp_path / "out", trials=4, baselines="experts", build=2)
    assert built.search.method == "TIES" and built.best.index == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: search_of(Auto(), MergeOptimizer(Sobol())),
            "Sobol: is no search over methods; leave --optimizer.search out",
        ),
        (
            lambda: search_of(Auto(), MergeOptimizer(racing=True)),
            "--optimizer.racing: is of a single method; leave it out with Auto",
        ),
        (
            lambda: search_of(Auto(), MergeOptimizer(learn="layers")),
            "--optimizer.learn: is of a single method; leave it out with Auto",
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


def polished(zoo, output, labels="none", trials=2, steps=11, **options):
    """``Auto`` of one method: raced, searched if there are more than two trials, and polished."""
    options = {"portfolio": ["TaskArithmetic"], "baselines": "experts", **options}
    return merge(zoo, output, trials, steps=steps, labels=labels, **options)


def shuffled_labels(zoo, folder):
    """The same experts, and data whose labels are others in all splits but the test's."""
    tasks = {}
    for name, files in zoo.tasks.items():
        tasks[name] = dict(files)
        for split in ("train", "validation"):
            rows = list(csv.DictReader(Path(files[split]).open(newline="")))
            column = [row["label"] for row in rows]
            for row, label in zip(rows, column[1:] + column[:1], strict=True):
                row["label"] = label
            tasks[name][split] = str(folder / f"{name}_{split}.csv")
            with Path(tasks[name][split]).open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    return SimpleNamespace(experts=zoo.experts, base=zoo.base, tasks=tasks)


def test_without_labels_none_is_read_before_the_test(zoo, tmp_path):
    report = polished(zoo, tmp_path / "out")
    found = records(tmp_path / "out")
    assert [one.get("stage") for one in found] == [None] * 2 + ["polish"] * 2
    assert all(0 < score < 1 for one in found for score in one["metrics"].values())
    assert report.best.index == max(found, key=lambda one: one["objective"])["trial"]
    polished(shuffled_labels(zoo, tmp_path), tmp_path / "other")
    assert records(tmp_path / "other") == found
    text = report.markdown()
    assert "labels: none was read before the test; a trial's score of a task is exp(−KL)" in text
    lines = [line for line in text.splitlines() if line.startswith(("| race", "| polish"))]
    assert [line.split("|")[2].strip() for line in lines] == ["2", "2"]
    assert [one.name for one in report.search.stages] == ["race", "polish", "tests"]


@pytest.mark.slow
def test_rows_are_trained_on_what_the_merge_has_learned_from(zoo, tmp_path):
    rows = {}
    for labels in ("none", "all"):
        report = polished(zoo, tmp_path / labels, labels, 3, baselines="all")
        rows[labels] = {row.name for row in report.rows}
        assert [one.name for one in report.search.stages] == ["race", "search", "polish", "tests"]
    assert "base, distilled" in rows["none"]
    assert not any("refitted" in name or "tuned" in name for name in rows["none"])
    assert {"base, fine-tuned", "plain average, fine-tuned", "base, distilled"} <= rows["all"]


def test_a_spent_budget_ends_the_search_and_the_training(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "over", lambda clock, part: part != "race")
    report = polished(zoo, tmp_path / "out", trials=3, budget="1h")
    assert [one.method for one in report.trials] == ["Average", "TaskArithmetic"]
    assert "search ended before its budget: its share of --budget is spent" in report.markdown()
    assert "--polish_steps: ended by --budget before step 0" in report.markdown()


def test_a_budget_for_less_than_one_trial_is_refused(zoo, tmp_path):
    with pytest.raises(UserError, match="--budget: is 0.001 s, but the first trial alone took"):
        polished(zoo, tmp_path / "out", budget="0.001s")


def test_training_that_nobody_asked_for_is_left_out_by_name(zoo, tmp_path):
    tasks = {
        name: {split: files[split] for split in ("validation", "test")}
        for name, files in zoo.tasks.items()
    }
    untrained = SimpleNamespace(experts=zoo.experts, base=zoo.base, tasks=tasks)
    report = polished(untrained, tmp_path / "out")
    assert len(report.trials) == 2
    assert "Auto: the stage polish was left out: --polish_steps: task 'colour'" in report.markdown()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"polish_loss": "labels"}, "--polish_loss labels: needs labels, but --labels is none"),
        ({"refit_heads": "end"}, "--refit_heads end: needs labels, but --labels is none"),
        (
            {"fisher": fmerge.fisher.FisherSettings(estimator="empirical")},
            "--fisher.estimator empirical: needs labels, but --labels is none",
        ),
        ({"labels": "few"}, "--labels: is 'few', but must be all or none"),
        ({"budget": "10"}, "--budget: is '10', but must be a time with its unit"),
    ],
)
def test_what_needs_labels_is_refused_without(options, message, zoo, tmp_path):
    with pytest.raises(UserError, match=message):
        polished(zoo, tmp_path / "out", **options)


def test_training_starts_from_what_looked_at_no_examples():
    search = search_of(Auto(["TIES", "RegMean"]), MergeOptimizer(AxSearch(3, 1)))
    assert search.data_free == {"Average", "TIES"}
    search.start(SearchSpace(["a", "b"]))
    for index, (method, score) in enumerate({"Average": 0.5, "TIES": 0.4, "RegMean": 0.9}.items()):
        point = {"a": 0.5, "b": 0.5}
        search.history.append(Trial(index, point, score, {"t": score}, method=method))
    stage, context = PolishStage(TrainingSettings()), SimpleNamespace(search=search)
    assert stage.origin(context, Candidate(search.best())).trial.method == "Average"
    learned = Candidate(Trial(3, {}, 0.95, {"t": 0.95}, stage="learn"))
    assert stage.origin(context, learned) is learned
    other = SimpleNamespace(search=Sobol())
    assert stage.origin(other, Candidate(search.best())).trial.method == "RegMean"
