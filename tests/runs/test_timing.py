"""The time of one batch, by a clock that is made up, and the batches of a pass."""

import itertools

import pytest
import torch
from lightning.pytorch import Trainer

from fmerge.data import MultiTask
from fmerge.evaluation.evaluator import Evaluator
from fmerge.fisher import FisherSettings
from fmerge.modules import TextClassifier
from fmerge.params import params_of
from fmerge.runs.timing import AUTOMATIC, adopt_random, batches, examples_in_batch, seconds_of_pass
from tests import tiny
from tests.evaluation.tiny_tasks import Given, examples, models


@pytest.mark.parametrize(
    ("examples", "size", "processes", "expected"),
    [
        (8, 4, 1, 2),
        (9, 4, 1, 3),
        (9, 4, 2, 2),  # five and four
        (8, 4, 2, 1),
        (1, 4, 8, 1),
        (33, "auto", 1, 3),
        (0, 4, 1, 0),
    ],
)
def test_batches_of_the_process_that_has_most(examples, size, processes, expected):
    assert batches(examples, MultiTask(batch_size=size), processes) == expected


def test_the_size_that_estimates_assume():
    assert examples_in_batch(MultiTask(batch_size=7)) == 7
    assert examples_in_batch(MultiTask(batch_size="auto")) == AUTOMATIC == 16


def test_a_network_of_random_weights_has_the_kind_and_head_of_what_was_read():
    with torch.device("meta"):  # as of headers alone: no number is there
        read = tiny.classifier(tiny.bert_config(("p", "q")))
    module = TextClassifier()
    adopt_random(module, "x", read, tiny.tokenizer())
    live = module.task_model("x")
    assert type(live) is type(read) and live is not read
    assert {n: t.shape for n, t in params_of(live).items()} == {
        n: t.shape for n, t in params_of(read).items()
    }
    assert all(torch.isfinite(tensor).all() for tensor in params_of(live).values())


@pytest.mark.parametrize("settings", [None, FisherSettings(split="train")])
def test_the_second_of_two_passes_over_one_batch_is_timed(monkeypatch, tmp_path, settings):
    module = TextClassifier()
    module.adopt({"x": models()["animal"]}, tiny.tokenizer())
    some = {split: examples(11, 2, i) for i, split in enumerate(("train", "validation"))}
    data = MultiTask({"x": Given(["p", "q"], **some)}, batch_size=4)
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    passes, clock = [], itertools.count(100, 2.5)
    note = Evaluator.note

    def noting(self, cost, split, tasks, most=None):
        lengths = [len(one["text"]) for one in self.data.tasks["x"].examples(split)]
        passes.append((cost, split, tasks, lengths))
        note(self, cost, split, tasks, most)

    monkeypatch.setattr(Evaluator, "note", noting)
    seconds = seconds_of_pass(trainer, module, data, "x", settings, clock=lambda: next(clock))
    assert seconds == 2.5 and next(clock) == 105.0
    cost, split = ("score", "validation") if settings is None else ("Fisher", "train")
    # four of eleven, of middling length: those after the three shortest
    middle = sorted(len(one["text"]) for one in some[split])[3:7]
    assert passes == [(cost, split, ["x"], middle)] * 2
    assert trainer.loggers == [] and not list(tmp_path.iterdir())  # nothing may be written
