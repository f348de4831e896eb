"""Learned coefficients and polished weights: killed at any time, and on two processes."""

import json

import pytest
import torch

import fmerge
from fmerge.evaluation import segments
from fmerge.modules.learner import Learner
from fmerge.runs import stage_context
from fmerge.store import run_folder
from tests.cli.run import data_config, experts, in_process
from tests.cli.test_kills import kill_at, run

TRAINING = [
    *["--method", "TaskArithmetic", "--baselines", "experts", "--heads", "train"],
    *["--optimizer.search", "Fixed", "--optimizer.learn", "layers", "--optimizer.patience", "9"],
    *["--optimizer.steps", "30", "--optimizer.learning_rate", "0.05", "--polish_steps", "20"],
]


def arguments(zoo, tmp_path, output, *more):
    given = ["--config", data_config(zoo, tmp_path), "--base", zoo.base, *experts(zoo)]
    return ["merge", *given, "--output", output, *TRAINING, *more]


def trials(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_learns_the_same(zoo, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(arguments(zoo, tmp_path, whole))
    moments = [  # of each run of 3 + 2 segments of 10 steps, what dies at which use of it
        (Learner, "training_step", 3, False),
        (run_folder, "append_line", 0, True),  # logged, but the state is not saved
        (Learner, "training_step", 12, False),
        (Learner, "snapshot", 0, False),
        (segments, "_bare", 1, False),
        (run_folder, "append_line", 0, False),
        (stage_context, "attempt", 0, True),
        (run_folder, "append_line", 0, True),
        (Learner, "snapshot", 0, True),
        (Learner, "training_step", 14, True),
    ]
    command = arguments(zoo, tmp_path, cut)
    for one in moments:
        assert kill_at(command, *one), one
    run(command)
    assert (cut / "trials.jsonl").read_bytes() == (whole / "trials.jsonl").read_bytes()
    for task in zoo.tasks:
        found, same = (fmerge.load_params(one / "merged" / task) for one in (cut, whole))
        assert all(found[name].equal(tensor) for name, tensor in same.items())


@pytest.mark.slow
def test_two_processes_learn_the_same(zoo, tmp_path):
    for processes in ("1", "2"):
        more = ["--trainer.devices", processes, "--trainer.logger", "false"]
        more += ["--trainer.strategy", "ddp"] if processes == "2" else []
        in_process(*arguments(zoo, tmp_path, tmp_path / processes, *more))
    one, two = trials(tmp_path / "1"), trials(tmp_path / "2")
    assert [t.get("stage") for t in one] == [None, *["learn"] * 3, *["polish"] * 2]
    for mine, its in zip(one, two, strict=True):
        assert mine["coefficients"].keys() == its["coefficients"].keys()
        for name, value in mine["coefficients"].items():
            assert its["coefficients"][name] == pytest.approx(value, abs=1e-4)
        assert mine["metrics"] == pytest.approx(its["metrics"], abs=1e-6)
    for task in zoo.tasks:
        found, same = (fmerge.load_params(tmp_path / p / "merged" / task) for p in ("1", "2"))
        for name, tensor in same.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
