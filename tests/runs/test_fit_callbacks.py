"""Several nodes resume from one checkpoint, or say which of them cannot."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule

from fmerge.errors import UserError
from fmerge.runs import fit_callbacks
from fmerge.runs.fit_callbacks import InStep, WeightsFirst, checked_resume


def trainer(nodes):
    return SimpleNamespace(num_nodes=nodes)


def together(monkeypatch, *others):
    """Other processes, whose replies are those of this one with some changes."""

    def gather(trainer, own):
        return [own, *({**dict(enumerate(own)), **other}.values() for other in others)]

    monkeypatch.setattr(fit_callbacks, "gather", gather)


def test_one_node_checks_a_checkpoint_at_once(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        checked_resume(trainer(1), str(tmp_path / "a.ckpt"))
    # the others of several nodes would wait for this one for ever
    assert checked_resume(trainer(2), "~/a.ckpt").endswith("/a.ckpt")


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({}, None),
        ({0: "n1", 1: "no such file"}, "on node n1: no such file; all nodes resume from one"),
        ({0: "n1", 3: 7}, "on node n1: .*a.ckpt has 7 bytes, .*a.ckpt on .* [0-9]+; all"),
        ({0: "n1", 2: "None", 3: 0}, "on node n1: None has 0 bytes, .*a.ckpt on"),
    ],
)
def test_nodes_agree_on_the_checkpoint(tmp_path, monkeypatch, other, line):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}}, path)
    together(monkeypatch, other)
    callback = WeightsFirst(str(path))
    if line is None:
        callback.setup(trainer(2), LightningModule(), "fit")
        return
    with pytest.raises(UserError, match=line):
        callback.setup(trainer(2), LightningModule(), "fit")
    callback.setup(trainer(1), LightningModule(), "fit")


def test_a_pass_without_a_checkpoint_asks_no_node(monkeypatch):
    monkeypatch.setattr(fit_callbacks, "gather", None)
    WeightsFirst().setup(trainer(2), LightningModule(), "validate")


class Scored(LightningModule):
    def __init__(self):
        super().__init__()
        self.batches = []

    def outcome(self, batch):
        self.batches.append(batch)


@pytest.mark.parametrize(("own", "repeated"), [([2, 1], ["b"] * 2), ([3, 2], [])])
def test_processes_of_a_split_model_score_equally_many_batches(monkeypatch, own, repeated):
    monkeypatch.setattr(fit_callbacks, "is_split", lambda trainer: True)
    monkeypatch.setattr(fit_callbacks, "gather", lambda trainer, own: [own, 5])
    one = SimpleNamespace(num_val_batches=own, num_test_batches=own, global_rank=0)
    module, callback = Scored(), InStep()
    callback.on_validation_start(one, module)
    for batch in "ab":
        callback.on_validation_batch_end(one, module, None, batch, 0)
    callback.on_validation_epoch_end(one, module)
    assert module.batches == repeated
    callback.on_test_start(one, module)
    one.num_test_batches = [0]
    with pytest.raises(UserError, match="fewer examples than the 2 processes"):
        callback.on_test_start(one, module)


def test_whole_models_repeat_no_batch(monkeypatch):
    one = SimpleNamespace(num_val_batches=[2], global_rank=0, strategy=None)
    callback = InStep()
    callback.on_validation_start(one, Scored())
    callback.on_validation_epoch_end(one, None)
