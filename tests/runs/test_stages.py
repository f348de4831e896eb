"""Stages after a search: their trials, what is kept of them, and how they are resumed and built."""

import json

import pytest
import torch

import fmerge
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.runs.job import MergeJob
from fmerge.runs.stages import Candidate, Stage
from fmerge.search import Trial
from tests import tiny

SHIFTS = (3.0, -3.0, 0.5)
"""What the stage of these tests adds to the second output of both heads."""


class Nudge(Stage):
    """Scores the best merge with heads of other biases, and a body of ones in one tensor."""

    name = "nudge"

    def __init__(self, killed_after=None):
        self.killed_after = killed_after

    def run(self, context, start):
        best = start
        for number, shift in enumerate(SHIFTS):
            if number == self.killed_after:
                raise KeyboardInterrupt
            body = {name: one.clone() for name, one in context.body_of(start).items()}
            body["bert.pooler.dense.bias"].fill_(shift)
            heads = {
                task: {"classifier.bias": head["classifier.bias"] + torch.eye(len(labels))[1]}
                for (task, head), labels in zip(
                    context.run.heads.items(), tiny.LABELS.values(), strict=True
                )
            }
            trial = context.score(self.name, {}, lambda body=body: body, heads)
            if context.is_better(trial, best.trial) or number == 0:
                best = Candidate(trial, body, heads)
                context.keep(best)
        return best


def staged(zoo, output, monkeypatch, killed_after=None, **options):
    monkeypatch.setattr(MergeJob, "stages", [Nudge(killed_after)])
    tasks = {
        name: TextFiles(**files, labels=tiny.LABELS[name]) for name, files in zoo.tasks.items()
    }
    search = fmerge.search.Fixed({"colour": 0.5, "animal": 0.25})
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[fmerge.MergeOptimizer(search)],
    )  # fmt: skip
    return trainer.merge(
        fmerge.modules.TextClassifier(),
        MultiTask(tasks, 16),
        experts=zoo.experts,
        base=zoo.base,
        method=fmerge.methods.TaskArithmetic(),
        output=output,
        **options,
    )


def records(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_records_of_the_search_are_as_they_were():
    trial = Trial(3, {"a": 0.5}, 0.25, {"t": 0.25})
    line = {"trial": 3, "status": "ok", "objective": 0.25, "coefficients": {"a": 0.5}}
    assert json.dumps(trial.as_record()) == json.dumps({**line, "metrics": {"t": 0.25}})
    later = Trial(4, {}, 0.5, {"t": 0.5}, stage="learn")
    assert later.as_record()["stage"] == "learn" and Trial.from_record(later.as_record()) == later


def test_a_stage_s_best_is_tested_reported_saved_and_built(zoo, tmp_path, monkeypatch, last_wins):
    report = staged(zoo, tmp_path / "out", monkeypatch)
    found = records(tmp_path / "out")
    assert [one["trial"] for one in found] == [0, 1, 2, 3]
    assert [one.get("stage") for one in found] == [None, "nudge", "nudge", "nudge"]
    assert report.best.index == 3 and report.best.stage == "nudge"
    text = report.markdown()
    assert "search: Fixed, 1 trial; stage nudge, 3 trials; the best is trial 3, of stage " in text
    assert "The runner-up is trial 0, the best of the search on validation." in text
    for task, path in zoo.experts.items():
        saved = fmerge.load_params(tmp_path / "out" / "merged" / task)
        own = fmerge.load_params(path)
        assert saved["bert.pooler.dense.bias"].eq(SHIFTS[-1]).all()
        torch.testing.assert_close(saved["classifier.bias"][1], own["classifier.bias"][1] + 1)
        torch.testing.assert_close(saved["classifier.bias"][0], own["classifier.bias"][0])
    built = staged(zoo, tmp_path / "out", monkeypatch, build=3)
    again = fmerge.load_params(tmp_path / "out" / "points" / "3" / "merged" / "animal")
    expected = fmerge.load_params(tmp_path / "out" / "merged" / "animal")
    assert all(again[name].equal(one) for name, one in expected.items())
    assert built.rows[-1].scores == report.rows[-1].scores
    with pytest.raises(
        UserError,
        match="--build 1: was not kept, as of stage nudge only what ",
    ):
        staged(zoo, tmp_path / "out", monkeypatch, build=1)


@pytest.mark.slow
def test_an_interrupted_stage_is_resumed_to_the_same_trials(zoo, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = staged(zoo, whole, monkeypatch, baselines="experts")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        staged(zoo, cut, monkeypatch, killed_after=2, baselines="experts")
    assert len(records(cut)) == 3
    report = staged(zoo, cut, monkeypatch, baselines="experts")
    assert records(cut) == records(whole)
    assert report.best == expected.best and report.rows == expected.rows


def test_a_stage_that_brings_nothing_leaves_the_search_s_best(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fmerge.runs.stage_context.StageContext.is_better", lambda self, trial, than: False
    )
    report = staged(zoo, tmp_path / "out", monkeypatch, baselines="experts")
    assert report.best.stage == "" and "; the best is trial 0" in report.markdown()
