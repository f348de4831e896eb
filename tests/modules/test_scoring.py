"""Metrics and loss of a batch become the scores that Lightning logs."""

import pytest
import torch

from fmerge.modules.scoring import ScoredModule


class Scored(ScoredModule):
    """Losses and predictions are those of the batch."""

    def __init__(self):
        super().__init__()
        self.logged = {}

    def outcome(self, batch):
        return batch["losses"], batch["predictions"]

    def log_dict(self, values):
        self.logged |= {name: float(value) for name, value in values.items()}

    def log(self, name, value, prog_bar):
        self.logged[name] = float(value)


def batch(task, predictions, labels, losses):
    return {
        "task": task,
        "predictions": torch.tensor(predictions),
        "labels": torch.tensor(labels),
        "losses": torch.tensor(losses),
    }


@pytest.fixture
def module():
    module = Scored()
    module.add_metrics({"a": ["x", "y"], "b": ["x", "y"]}, {"b": ["accuracy", "f1"]})
    return module


FIRST = batch("a", [0, 1, 1], [0, 1, 0], [1.0, 2.0, 3.0])
SECOND = batch("b", [1, 1], [1, 0], [4.0, 5.0])


def test_a_validation_logs_metrics_the_mean_of_the_tasks_and_the_loss(module):
    module.validation_step(FIRST, 0)
    module.validation_step(SECOND, 0, 1)
    module.on_validation_epoch_end()
    assert module.logged == pytest.approx({
        "a/accuracy": 2 / 3,
        "b/accuracy": 1 / 2,
        "b/f1": 2 / 3,
        "val/loss": 3.0,  # over examples, not over batches
        "val/score": (2 / 3 + (1 / 2 + 2 / 3) / 2) / 2,
    })


def test_each_pass_begins_at_zero_and_tasks_without_batches_are_left_out(module):
    module.validation_step(FIRST, 0)
    module.on_validation_epoch_end()
    module.logged = {}
    module.test_step(batch("a", [1], [1], [0.5]), 0)
    module.on_test_epoch_end()
    assert module.logged == {"a/accuracy": 1.0, "test/loss": 0.5, "test/score": 1.0}


def test_a_test_returns_predictions_and_targets(module):
    found = module.test_step(FIRST, 0)
    assert found["predictions"].tolist() == [0, 1, 1] and found["targets"].tolist() == [0, 1, 0]


def test_right_answers_are_recorded_while_one_asks_for_them(module):
    module.validation_step(FIRST, 0)
    assert module.right is None
    module.right = {}
    module.validation_step(FIRST, 0)
    module.validation_step(FIRST, 1)
    assert [one.tolist() for one in module.right["a"]] == [[True, True, False]] * 2
    assert module.right.keys() == {"a"}


def test_metrics_by_default_are_accuracy_and_for_a_number_its_correlation():
    module = Scored()
    module.add_metrics({"a": ["x", "y"], "number": ["score"], "choices": []}, {})
    assert {task: list(metrics) for task, metrics in module.metrics.items()} == {
        "a": ["accuracy"], "number": ["pearson"], "choices": ["accuracy"],
    }  # fmt: skip
