"""Stages that train: what they log and save, how they are resumed, and what is refused."""

import inspect

import pytest
import torch

import fmerge
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.report.confidence import Estimate
from fmerge.report.parts import TestOutcome
from fmerge.report.scores import Comparison
from fmerge.report.sentences import verdict
from fmerge.runs import training
from fmerge.runs.merge import MergeRun
from fmerge.runs.pass_plan import PassPlan
from fmerge.store.run_config import _ADDED
from tests import tiny
from tests.runs.test_stages import records

TASKS = list(tiny.LABELS)
SEARCH = {"colour": 0.5, "animal": 0.25}


def merge(zoo, output, splits=("train", "validation", "test"), batch_size=8, trainer=(), **options):
    """A merge whose options of the optimizer and of the merge are told apart by their names."""
    known = inspect.signature(MergeOptimizer).parameters
    own = {name: options.pop(name) for name in list(options) if name in known}
    tasks = {
        name: TextFiles(**{split: files[split] for split in splits}, labels=tiny.LABELS[name])
        for name, files in zoo.tasks.items()
    }
    made = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[MergeOptimizer(**{"search": fmerge.search.Fixed(SEARCH)} | own)],
        **dict(trainer),
    )  # fmt: skip
    return made.merge(
        fmerge.modules.TextClassifier(),
        MultiTask(tasks, batch_size),
        experts=zoo.experts,
        base=zoo.base,
        output=output,
        **{"method": fmerge.methods.TaskArithmetic(), "baselines": "experts"} | options,
    )


def test_learned_coefficients_are_logged_and_make_the_merge(zoo, tmp_path, last_wins):
    report = merge(zoo, tmp_path, learn="layers", steps=12, learning_rate=0.05)
    first, one, two = records(tmp_path)
    assert first["coefficients"] == SEARCH and "stage" not in first
    groups = ["rest", "bert.encoder.layer.0", "bert.encoder.layer.1"]
    names = [f"{task}/{group}" for task in TASKS for group in groups]
    assert [(t["stage"], list(t["coefficients"])) for t in (one, two)] == [("learn", names)] * 2
    # ten steps of Adam at 0.05 move a coefficient by at most about 0.5, and move all of them
    moved = [one["coefficients"][n] - SEARCH[n.split("/")[0]] for n in names]
    assert all(0.001 < abs(shift) < 0.6 for shift in moved)
    assert report.best.index == 2
    base, key = fmerge.load_params(zoo.base), "bert.encoder.layer.1.output.dense.weight"
    experts = {task: fmerge.load_params(path)[key] for task, path in zoo.experts.items()}
    values = {t: two["coefficients"][f"{t}/bert.encoder.layer.1"] for t in TASKS}
    expected = base[key] + sum(values[t] * (experts[t] - base[key]) for t in TASKS)
    found = fmerge.load_params(tmp_path / "merged" / "animal")
    torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-7)
    own = fmerge.load_params(zoo.experts["animal"])
    assert found["classifier.weight"].equal(own["classifier.weight"])  # heads stay
    assert not (tmp_path / "stages" / "learn-state.safetensors").exists()


def test_the_loss_falls(zoo, tmp_path, monkeypatch):
    losses, whole = [], training.fit_steps

    def recording(trainer, learner, sources, steps):
        finite = whole(trainer, learner, sources, steps)
        losses.extend(float(one) for one in learner.losses)
        return finite

    monkeypatch.setattr(training, "fit_steps", recording)
    options = {"examples": 8, "patience": 9, "heads": "train"}
    merge(zoo, tmp_path, learn="tensors", steps=20, learning_rate=0.05, **options)
    assert len(losses) == 20
    assert sum(losses[15:20]) < 0.9 * sum(losses[:5])
    assert all(loss > 0 for loss in losses)  # divergences of distributions


FULL = {"learn": "layers", "steps": 30, "heads": "train", "polish_steps": 20}


@pytest.mark.parametrize(
    ("options", "killed", "trained"),
    [
        ({"learn": "layers", "steps": 20, "heads": "train"}, [2], [0, 10, 10]),
        pytest.param(FULL, [3, 2], [0, 10, 20, 20, 0, 0, 10], marks=pytest.mark.slow),
    ],
)
def test_interrupted_training_is_resumed_to_the_same_trials(
    zoo, tmp_path, monkeypatch, last_wins, options, killed, trained
):
    whole, cut, real, made = tmp_path / "whole", tmp_path / "cut", training.fit_steps, []
    expected = merge(zoo, whole, **options)
    for number in killed:
        left = iter(range(number - 1))

        def dying(*args, left=left):
            made.append(args[-1].start)
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(training, "fit_steps", dying)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            merge(zoo, cut, **options)
    monkeypatch.setattr(
        training, "fit_steps", lambda *args: made.append(args[-1].start) or real(*args)
    )
    report = merge(zoo, cut, **options)
    assert made == trained  # nothing that was finished is trained again
    assert (cut / "trials.jsonl").read_bytes() == (whole / "trials.jsonl").read_bytes()
    assert report.rows == expected.rows and report.best == expected.best
    for task in TASKS:
        found, same = (fmerge.load_params(one / "merged" / task) for one in (cut, whole))
        assert all(found[name].equal(tensor) for name, tensor in same.items())


def test_what_diverges_is_stopped_and_the_last_good_trial_kept(zoo, tmp_path, caplog):
    report = merge(zoo, tmp_path, learn="layers", steps=20, learning_rate=1e30)
    said = "--optimizer.learn: what is learned has diverged by step 10: stopped, and trial 0 "
    assert said in caplog.text and said in report.markdown()
    assert report.best.index == 0 and len(records(tmp_path)) == 1


@pytest.mark.slow
def test_the_plan_is_what_is_done(zoo, tmp_path, monkeypatch, last_wins):
    plans, made = [], []
    whole = MergeRun.run

    def spying(self, *args):
        plans.append(PassPlan(self, 1, own_scores=False).passes())
        report = whole(self, *args)
        made.append(+self.evaluator.made)
        return report

    monkeypatch.setattr(MergeRun, "run", spying)
    options = {"learn": "layers", "steps": 10, "polish_steps": 10, "polish_anchor": 0.1}
    options |= {"baselines": "all", "loss": "labels"}
    merge(zoo, tmp_path, **options)
    differing = {key: (plans[0][key], made[0][key]) for key in plans[0] | made[0]}
    assert {key: pair for key, pair in differing.items() if pair[0] != pair[1]} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        ("experts", ["base, distilled"]),
        ("labels", ["base, fine-tuned", "plain average, fine-tuned"]),
    ],
)
def test_a_trained_merge_stands_beside_what_was_trained_as_long(zoo, tmp_path, loss, rows):
    report = merge(
        zoo, tmp_path, polish_steps=10, polish_loss=loss, polish_learning_rate=0.01, baselines="all"
    )
    names = [row.name for row in report.rows]
    assert [name for name in names if "tuned" in name or "distilled" in name] == rows
    compared = [one.against for one in report.comparisons if one.name == "this merge"]
    assert compared[-len(rows) - 1 :] == ["base, heads refitted", *rows]
    start = "- on the test examples, with 95% intervals, this merge "
    (said,) = [line for line in report.markdown().splitlines() if line.startswith(start)]
    by_name = {row.name: row.scores for row in report.rows}
    for name in rows:
        difference = sum(by_name["this merge"][t] - by_name[name][t] for t in TASKS) / len(TASKS)
        assert f"'{name}', {100 * difference:+.1f} (" in said
    base = by_name["base"]
    assert any(by_name[name] != base for name in rows)  # they have learned


def test_a_verdict_says_who_is_better_in_words():
    def against(name, low, high):
        return Comparison("this merge", name, {}, Estimate((low + high) / 2, low, high, 0.01))

    found = [
        against("plain average", 0.01, 0.03),
        against("base, heads refitted", 0.01, 0.03),
        against("base, fine-tuned", -0.01, 0.02),
        against("plain average, fine-tuned", -0.04, -0.02),
    ]
    assert verdict(TestOutcome(comparisons=found)) == [
        "on the test examples, with 95% intervals, this merge beats 'base, heads refitted', +2.0 "
        "(+1.0 to +3.0) points; it does not beat 'base, fine-tuned', +0.5 (-1.0 to +2.0) points; "
        "it IS BEATEN by 'plain average, fine-tuned', -3.0 (-4.0 to -2.0) points"
    ]
    assert verdict(TestOutcome(comparisons=found[:2])) == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"splits": ("validation", "test")}, "task 'colour' has no train split to learn on"),
        ({"steps": 0}, "--optimizer.steps: is 0, but must lie in [1, inf)"),
        ({"patience": 0}, "--optimizer.patience: is 0, but must lie in [1, inf)"),
        ({"learning_rate": 0.0}, "--optimizer.learning_rate: is 0.0, but must lie in (0, inf)"),
        (
            {"loss": "guess"},
            "--optimizer.loss: is 'guess', but must be labels, experts, both or ent",
        ),
        ({"learn": "all"}, "--optimizer.learn: is 'all', but must be layers or tensors"),
        ({"method": fmerge.methods.Average(), "search": None}, "Average has no coefficients to"),
        ({"method": fmerge.methods.DFMerge()}, "--optimizer.learn: DFMerge weighs by a statistic"),
        ({"batch_size": "auto"}, "depends on --data.batch_size, which is auto; give a number"),
        ({"groups": "kind", "search": fmerge.search.Sobol(1)}, "'rest' has tensors of the search"),
        ({"trainer": {"precision": "bf16-true"}}, "--trainer.precision is bf16-true, which would"),
        ({"learn": None, "heads": "train"}, "--heads: is train, but no coefficients are learned"),
        ({"heads": "train", "refit_heads": "end"}, "--refit_heads: is end, but heads are trained"),
        ({"polish_steps": 5, "refit_heads": "end"}, "but --polish_steps trains the heads; leave"),
        ({"polish_steps": 5, "polish_anchor": -1.0}, "--polish_anchor: is -1.0, but must lie in"),
        ({"polish_steps": -5}, "--polish_steps: is -5, but must lie in [0, inf)"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(zoo, tmp_path, options, line):
    with pytest.raises(UserError) as refused:
        merge(zoo, tmp_path / "out", **{"learn": "layers"} | options)
    assert line in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "trials.jsonl").exists()


def test_a_run_of_an_older_version_went_without():
    known = inspect.signature(MergeOptimizer).parameters
    merging = inspect.signature(fmerge.Trainer.merge).parameters
    for name, value in _ADDED.items():
        section, _, option = name.rpartition(".")
        assert (known if section else merging)[option].default == value
