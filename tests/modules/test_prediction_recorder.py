"""Predictions of a test are recorded once each, in the order of the data set."""

from types import SimpleNamespace

import pytest
import torch

from fmerge.modules import prediction_recorder, record_predictions
from fmerge.modules.prediction_recorder import PredictionRecorder


def trainer():
    return SimpleNamespace(callbacks=[], world_size=1)


def outputs(*predictions):
    return {"predictions": torch.tensor(predictions), "targets": torch.tensor(predictions) + 10}


def test_batches_are_joined_by_task():
    one = trainer()
    with record_predictions(one) as recorder:
        assert one.callbacks == [recorder]
        recorder.on_test_start(one, None)
        for batch, (task, found) in enumerate([
            ("a", outputs(1, 2)),
            ("b", outputs(7)),
            ("a", outputs(3)),
            ("a", None),
            ("b", {}),
        ]):
            recorder.on_test_batch_end(one, None, found, {"task": task}, batch)
    assert not one.callbacks
    found = recorder.predictions(one)
    assert {task: [rows.tolist() for rows in pair] for task, pair in found.items()} == {
        "a": [[1, 2, 3], [11, 12, 13]],
        "b": [[7], [17]],
    }


def test_a_repeated_pass_counts_once():
    recorder = PredictionRecorder()
    for _ in range(2):
        recorder.on_test_start(trainer(), None)
        recorder.on_test_batch_end(trainer(), None, outputs(5), {"task": "a"}, 0)
    assert recorder.predictions(trainer())["a"][0].tolist() == [5]


def test_processes_are_interleaved(monkeypatch):
    recorder = PredictionRecorder()
    recorder.on_test_batch_end(trainer(), None, outputs(0, 2, 4), {"task": "a"}, 0)
    other = {"a": (torch.tensor([1, 3]), torch.tensor([11, 13]))}
    monkeypatch.setattr(prediction_recorder, "gather", lambda trainer, own: [own, other])
    predictions, targets = recorder.predictions(trainer())["a"]
    assert predictions.tolist() == [0, 1, 2, 3, 4] and targets.tolist() == [10, 11, 12, 13, 14]


def test_a_test_that_fails_leaves_no_callback():
    one = trainer()
    with pytest.raises(RuntimeError), record_predictions(one):
        raise RuntimeError
    assert not one.callbacks
