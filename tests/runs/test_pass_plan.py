"""A dry run names the very passes that the run makes."""

from collections import Counter

import pytest

from fmerge.cli.app import main
from fmerge.evaluation.evaluator import Evaluator
from fmerge.evaluation.passes import Pass
from fmerge.runs import job
from tests.cli.run import data_config, experts

SOBOL = ["--optimizer.search", "Sobol", "--optimizer.search.trials"]
CONFIGURATIONS = {
    "the base under refitted heads": ["--method", "TaskArithmetic", *SOBOL, "3"],
    "Fishers of training examples, the experts alone": [
        "--method", "FisherMerge", "--optimizer.search", "Dirichlet",
        "--optimizer.search.draws", "3", "--baselines", "experts",
        "--fisher.split", "train", "--fisher.examples", "6",
    ],
    "a Fisher that moves": [
        "--method", "DFMerge", "--optimizer.search", "Fixed", "--fisher.examples", "5",
    ],
    "a curve of two nodes": [
        "--method", "DFMerge", *SOBOL, "3", "--fisher.curve", "2", "--fisher.examples", "5",
    ],
    "Grams, and heads refitted in every trial": [
        "--method", "RegMean", *SOBOL, "2", "--refit_heads", "trials", "--refit_examples", "9",
    ],
    "an average held to its experts": [
        "--method", "Average", "--refit_heads", "end", "--optimizer.keep", "0.1",
    ],
    "calibrations of a searched start": [
        "--method", "FeatCal", "--method.start", "FisherMerge", "--fisher.examples", "3",
        *SOBOL, "2", "--fisher.split", "train", "--baselines", "experts",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_plan_is_what_is_done(zoo, tmp_path, monkeypatch, name):
    plans, made = [], Counter()
    monkeypatch.setattr(
        job, "show_merge_plan", lambda run, search, plan, output: plans.append(plan)
    )
    note = Evaluator.note

    def noting(self, cost, split, tasks, most=None):
        made.update(Pass(cost, task, split, self.data.size(task, split, most)) for task in tasks)
        note(self, cost, split, tasks, most)

    monkeypatch.setattr(Evaluator, "note", noting)
    command = [
        "merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base,
        *CONFIGURATIONS[name],
    ]  # fmt: skip
    main([*command, "--output", str(tmp_path / "dry"), "--dry_run", "true"])
    (plan,) = plans
    expected = plan.passes()
    assert not made and not (tmp_path / "dry").exists()
    main([*command, "--output", str(tmp_path / "run")])
    assert made == expected


def test_the_plan_by_value(zoo, tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(
        job, "show_merge_plan", lambda run, search, plan, output: plans.append(plan)
    )
    main([
        "merge", "--config", data_config(zoo, tmp_path, "colour", "animal"), *experts(zoo),
        "--base", zoo.base, "--method", "DFMerge", *SOBOL, "4", "--fisher.examples", "5",
        "--optimizer.objective", "retained", "--output", str(tmp_path / "out"), "--dry_run", "true",
    ])  # fmt: skip
    passes = plans[0].passes()
    # 4 trials, the plain average and the experts' own scores; base, experts, average, runner-up
    # and merge, and the base's refitted heads once more; a Fisher for every trial, the runner-up
    # and the merge
    assert passes[Pass("score", "colour", "validation", 13)] == 4 + 1 + 1
    assert passes[Pass("score", "colour", "test", 11)] == 5 + 1
    assert passes[Pass("score", "animal", "train", 20)] == 1
    assert passes[Pass("Fisher", "animal", "validation", 5)] == 4 + 2
