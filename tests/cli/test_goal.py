"""Objectives, bounds and groups from the command line."""

import json
import math

import pytest
import torch

from fmerge.cli.app import main
from fmerge.evaluation.evaluator import Evaluator
from fmerge.merging.assembler import Assembler
from fmerge.methods import TaskArithmetic
from tests.cli.run import data_config, experts, fails, in_process
from tests.cli.test_commands import assert_same, body


def merge(zoo, folder, output, *options):
    return [
        str(arg)
        for arg in [
            *["merge", "--config", data_config(zoo, folder), *experts(zoo), "--base", zoo.base],
            *["--output", output, "--method", "TaskArithmetic", "--baselines", "experts"],
            *options,
        ]
    ]


def trials(output):
    return [json.loads(line) for line in (output / "trials.jsonl").read_text().splitlines()]


def own_scores(output):
    return json.loads((output / "inputs.json").read_text())["experts' validation scores"]


@pytest.mark.slow
def test_groups_objective_and_keep_together(zoo, tmp_path):
    output = tmp_path / "run"
    main(
        merge(
            zoo, tmp_path, output,
            *["--optimizer.search", "AxSearch", "--optimizer.search.trials", "7"],
            *["--optimizer.search.initial_trials", "5", "--optimizer.search.noise", "binomial"],
            *["--optimizer.groups", "2", "--optimizer.objective", "retained"],
            *["--optimizer.keep", "0.5"],
        )
    )  # fmt: skip
    own = own_scores(output)
    tasks, log = list(zoo.experts), trials(output)
    names = [f"{task}/block{i}" for task in tasks for i in range(2)]
    assert len(log) == 7 and all(list(trial["coefficients"]) == names for trial in log)
    # the start points are alike in all groups, the model's need not be
    assert log[0]["coefficients"] == dict.fromkeys(names, 0.5)
    for trial in log:
        shares = [trial["metrics"][task] / own[task] for task in tasks]
        assert trial["objective"] == pytest.approx(sum(shares) / 2)
        # 13 validation examples
        for task in tasks:
            p = min(max(trial["metrics"][task], 0.5 / 13), 1 - 0.5 / 13)
            assert trial["errors"][task] == pytest.approx(math.sqrt(p * (1 - p) / 13))
        spread = [trial["errors"][task] / own[task] for task in tasks]
        assert trial["error"] == pytest.approx(math.hypot(*spread) / 2)

    def missing(trial):
        short = (0.5 * own[task] - trial["metrics"][task] for task in tasks)
        return sum(value for value in short if value > 1e-6)

    best = max(log, key=lambda t: (-missing(t), t["objective"], -t["trial"]))
    report = (output / "report.md").read_text()
    assert f"the best is trial {best['trial']}\n" in report
    assert "by the mean share of the expert's score retained" in report
    assert f"lower bounds on validation: {tasks[0]} {50 * own[tasks[0]]:.1f}" in report
    assert ("NO TRIAL meets them" in report) == (missing(best) > 0)
    assert "the search's model would choose" in report
    for task in tasks:
        values = [best["coefficients"][f"{task}/block{i}"] for i in range(2)]
        line = f"- coefficients of {task}: block0 {values[0]:.4f}, block1 {values[1]:.4f}"
        assert line in report
    # layer 1 takes the coefficients of block1, all before it those of block0
    merged = body(output / "merged" / tasks[0])
    base, bodies = body(zoo.base), [body(zoo.experts[task]) for task in tasks]
    expected = {}
    for i in range(2):
        coefficients = [best["coefficients"][f"{task}/block{i}"] for task in tasks]
        for name, value in TaskArithmetic().merge(base, bodies, coefficients).items():
            late = "encoder.layer.1." in name or "pooler" in name
            if late == (i == 1):
                expected[name] = value
    assert_same(merged, expected)


def test_a_bound_that_no_trial_keeps_is_said(zoo, tmp_path, capsys):
    output = tmp_path / "run"
    options = ["--optimizer.search", "Fixed", "--optimizer.keep", "1.0"]
    # at these coefficients the merge is nearly the base
    tasks = list(zoo.experts)
    given = json.dumps({tasks[0]: 0.0, tasks[1]: 0.01})
    main(merge(zoo, tmp_path, output, *options, "--optimizer.search.coefficients", given))
    own, (trial,) = own_scores(output), trials(output)
    short = [task for task in tasks if trial["metrics"][task] < own[task] - 1e-6]
    assert short
    report = (output / "report.md").read_text()
    said = "NO TRIAL meets them, and the best is the one with the smallest shortfall: "
    assert said in report and said in capsys.readouterr().out
    for task in short:
        assert f"{task} by {100 * (own[task] - trial['metrics'][task]):.1f}" in report


def test_the_experts_are_scored_once_in_the_life_of_a_run(zoo, tmp_path, monkeypatch):
    output, scored = tmp_path / "run", []
    whole = Evaluator.score

    def score(self, body, split, tasks):
        if split == "validation" and len(tasks) == 1:
            scored.append(tasks[0])
        return whole(self, body, split, tasks)

    monkeypatch.setattr(Evaluator, "score", score)
    options = ["--optimizer.objective", "worst_retained", "--optimizer.search", "Sobol"]
    main(merge(zoo, tmp_path, output, *options, "--optimizer.search.trials", "2"))
    assert scored == list(zoo.experts)
    short, own = trials(output), own_scores(output)
    for trial in short:
        assert trial["objective"] == pytest.approx(
            min(trial["metrics"][task] / own[task] for task in own)
        )
    main(merge(zoo, tmp_path, output, *options, "--optimizer.search.trials", "3"))
    assert len(scored) == 2 and own_scores(output) == own
    # the last trial of each is the plain average
    assert trials(output)[:2] == short[:2] and len(trials(output)) == 4


def test_weights_and_fixed_coefficients_by_group(zoo, tmp_path):
    output = tmp_path / "run"
    tasks = list(zoo.experts)
    given = {tasks[0]: 0.25, f"{tasks[0]}/mlp": 0.5, tasks[1]: 0.75}
    main(
        merge(
            zoo, tmp_path, output,
            *["--optimizer.groups", "kind", "--optimizer.search", "Fixed"],
            *["--optimizer.search.coefficients", json.dumps(given)],
            *["--optimizer.weights", json.dumps({tasks[0]: 3, tasks[1]: 1})],
        )
    )  # fmt: skip
    (trial,) = trials(output)
    kinds = ["embeddings", "attention", "mlp", "other"]
    first = {f"{tasks[0]}/{kind}": 0.5 if kind == "mlp" else 0.25 for kind in kinds}
    assert trial["coefficients"] == first | {f"{tasks[1]}/{kind}": 0.75 for kind in kinds}
    scores = [trial["metrics"][task] for task in tasks]
    assert trial["objective"] == pytest.approx((3 * scores[0] + scores[1]) / 4)
    report = (output / "report.md").read_text()
    assert f"by the mean over tasks, weights {tasks[0]} 3, {tasks[1]} 1" in report
    assert "the search's model" not in report


@pytest.mark.slow
def test_a_trial_out_of_memory_is_recorded_and_not_repeated(zoo, tmp_path, monkeypatch):
    output, calls = tmp_path / "run", []
    whole = Assembler.assemble

    def assemble(self, coefficients, *where):
        calls.append(coefficients)
        if len(calls) in {2, 7}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(self, coefficients, *where)

    monkeypatch.setattr(Assembler, "assemble", assemble)
    search = ["--optimizer.search", "AxSearch", "--optimizer.search.trials", "8"]
    main(merge(zoo, tmp_path, output, *search, "--optimizer.search.initial_trials", "5"))
    log = trials(output)
    assert [t["trial"] for t in log if t["status"] == "failed"] == [1, 6]
    assert log[6]["reason"].startswith("CUDA out of memory") and log[6]["objective"] is None
    assert len({tuple(t["coefficients"].values()) for t in log}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer.keep", "97"], "keep: is 97.0 for 'colour'"),
        (["--optimizer.keep", "{sound: 0.9}"], "keep: unknown task 'sound'"),
        (["--optimizer.weights", "{colour: 1}"], "weights: are given for colour"),
        (["--optimizer.objective", "median"], "unknown value 'median'; known: mean, retained"),
        (["--optimizer.groups", "9"], "groups: is 9, but the model has 2 numbered layers"),
        (["--optimizer.groups", "{low: layer}"], "match no expression"),
        (
            ["--optimizer.groups", "kind", "--optimizer.search", "Grid"],
            "Grid: searches the line between two coefficients, but there are 8",
        ),
        (
            ["--method", "Average", "--optimizer.groups", "kind"],
            "Average has no coefficients to divide",
        ),
    ],
)
def test_goals_that_do_not_fit_are_said(zoo, tmp_path, capsys, options, message):
    output = tmp_path / "out"
    search = [] if "--method" in options else ["--optimizer.search", "AxSearch"]
    assert message in fails(capsys, *merge(zoo, tmp_path, output, *search, *options))
    assert not output.exists()


@pytest.mark.parametrize(
    "option", ["keep=0.9", "objective=worst", "weights={colour: 1, animal: 2}"]
)
def test_goals_need_data(zoo, tmp_path, capsys, option):
    arguments = ["merge", *experts(zoo), "--method", "Isotropic", "--output", tmp_path / "out"]
    line = fails(capsys, *arguments, f"--optimizer.{option}")
    assert "objective, weights and keep need data to score on" in line


def test_binomial_noise_is_that_of_accuracies(zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fmerge.data.TextFiles.metrics", ("accuracy", "matthews"))
    output, binomial = tmp_path / "out", ["--optimizer.search.noise", "binomial"]
    arguments = merge(zoo, tmp_path, output, "--optimizer.search", "AxSearch", *binomial)
    assert "is scored by accuracy, matthews; use noise infer" in fails(capsys, *arguments)
    assert not output.exists()
    main(merge(zoo, tmp_path, output, "--optimizer.search", "Fixed"))
    (trial,) = trials(output)
    assert "errors" not in trial and "error" not in trial


@pytest.mark.slow
def test_two_processes_share_goal_and_bounds(zoo, tmp_path):
    options = ["--optimizer.objective", "worst_retained", "--optimizer.keep", "0.9"]
    search = ["--optimizer.search", "AxSearch", "--optimizer.search.trials", "6"]
    few = ["--optimizer.search.initial_trials", "5", "--optimizer.groups", "2"]
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    main(merge(zoo, tmp_path, tmp_path / "1", *options, *search, *few))
    in_process(*merge(zoo, tmp_path, tmp_path / "2", *options, *search, *few, *ddp))
    assert own_scores(tmp_path / "2") == pytest.approx(own_scores(tmp_path / "1"))
    for one, two in zip(trials(tmp_path / "1")[:5], trials(tmp_path / "2")[:5], strict=True):
        assert one["coefficients"] == two["coefficients"]
        assert one["objective"] == pytest.approx(two["objective"])
    report = (tmp_path / "2" / "report.md").read_text()
    assert "lower bounds on validation: " in report and "would choose" in report
