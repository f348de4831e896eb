"""A killed fit, gone on with from its last checkpoint, ends at the same weights."""

import multiprocessing
import os
import signal

import pytest
import torch
from lightning.pytorch.cli import LightningCLI  # noqa: F401  imported once, before the forks
from safetensors.torch import load_file

from fmerge.cli.app import main
from fmerge.modules import TextClassifier
from tests.cli.run import data_config


def fit(zoo, folder, output, *options):
    return [
        *["fit", "--config", data_config(zoo, folder), "--model.path", zoo.base],
        *["--output", output, "--model.learning_rate", "0.01", "--trainer.max_epochs", "4"],
        *["--trainer.val_check_interval", "2", "--checkpoint.monitor", "null"],
        *["--checkpoint.filename", "newest", *options],
    ]


def run(arguments, dies_at=None):
    torch.set_num_threads(1)
    if dies_at is not None:
        step = TextClassifier.training_step

        def dying(self, batch, batch_idx):
            if self.trainer.fit_loop.total_batch_idx == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, batch_idx)

        TextClassifier.training_step = dying
    main([str(one) for one in arguments])


# 20 examples a task in batches of 4: an epoch has 5 batches, a checkpoint comes every 2
@pytest.mark.parametrize(
    "dies_at",
    [pytest.param(4, marks=pytest.mark.slow), 7, pytest.param(13, marks=pytest.mark.slow)],
)
def test_a_killed_fit_ends_at_the_same_weights(zoo, tmp_path, dies_at):
    """Two tasks of unequal size, dropout on, killed inside an epoch and at its start."""
    whole, output = tmp_path / "whole", tmp_path / "killed"
    run(fit(zoo, tmp_path, whole))
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(fit(zoo, tmp_path, output), dies_at)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    last = output / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == dies_at - dies_at % 5 % 2
    run(fit(zoo, tmp_path, output, "--ckpt_path", last))
    for task in zoo.tasks:
        found = load_file(output / "expert" / task / "model.safetensors")
        expected = load_file(whole / "expert" / task / "model.safetensors")
        assert all(torch.equal(found[name], value) for name, value in expected.items())
