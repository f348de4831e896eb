"""Experts that are worse than guessing are named, with the likely reason."""

import logging

import pytest

from fmerge.data import MultiTask, TaskData
from fmerge.evaluation.chance import below_chance, chance_level, check_results


class Task(TaskData):
    def __init__(self, labels, metrics=("accuracy",), choices=()):
        self._labels = labels
        self.metrics = metrics
        self._choices = choices

    @property
    def labels(self):
        return self._labels

    def examples(self, split):
        return [{"text": "a", "label": 0, "choices": ["x"] * count} for count in self._choices]


DATA = MultiTask({
    "three": Task(["a", "b", "c"]),
    "cola": Task(["no", "yes"], ("matthews",)),
    "stsb": Task(["score"], ("pearson", "spearman")),
    "mrpc": Task(["no", "yes"], ("accuracy", "f1")),
    "ranked": Task([], choices=(2, 4)),
    "spans": Task([], ("exact",)),
})


def test_chance_is_a_uniform_guess():
    levels = {task: chance_level(DATA, task, "test") for task in DATA.tasks}
    assert levels == {
        "three": pytest.approx(1 / 3), "cola": 0.0, "stsb": 0.0, "mrpc": None,
        "ranked": (1 / 2 + 1 / 4) / 2, "spans": None,
    }  # fmt: skip


def test_an_expert_below_chance_is_named(caplog):
    scores = {"three": 0.25, "cola": 0.1, "stsb": -0.2, "mrpc": 0.0, "ranked": 0.375}
    with caplog.at_level(logging.WARNING):
        found = below_chance(DATA, scores, "test")
    assert found == [record.getMessage() for record in caplog.records]
    assert found[0] == (
        "task 'three': its expert scores 0.2500 on the test examples, below chance (0.3333); the "
        "likely reason is that its outputs are in another order than the data's labels (a, b, c)"
    )
    assert len(found) == 2 and found[1].startswith("task 'stsb': its expert scores -0.2000")


def test_results_of_a_pass_are_looked_through(caplog):
    with caplog.at_level(logging.WARNING):
        check_results(
            DATA, [{"three/accuracy": 0.3, "test/loss": 1.0}, {"cola/matthews": 0.4}], "test"
        )
        check_results(object(), [{"three/accuracy": 0.0}], "test")
    assert len(caplog.records) == 1 and "task 'three'" in caplog.text
