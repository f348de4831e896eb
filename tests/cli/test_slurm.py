"""SLURM's signal: all is saved, the job is put back, and the same command goes on."""

import signal

import pytest
import torch
from safetensors.torch import load_file

from fmerge.cli.app import main
from fmerge.fisher import FisherAccumulator
from fmerge.modules import TextClassifier
from fmerge.store import read_fisher
from tests.cli.run import data_config
from tests.cli.test_fit_resumes import fit
from tests.cli.test_interrupts import in_child, merge, send, trials

CODE = 128 + signal.SIGUSR1


def run(*args):
    torch.set_num_threads(1)
    main([str(arg) for arg in args])


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job of one process; returns the file that ``scontrol`` writes its arguments to."""
    calls, bin_ = tmp_path / "calls", tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (bin_ / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_), prepend=":")
    for name, value in {
        "NTASKS": 1,
        "JOB_ID": 1234,
        "PROCID": 0,
        "LOCALID": 0,
        "NODEID": 0,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    return calls


# 5 batches an epoch: in the middle of one, before its end, in its last batch, before a validation
@pytest.mark.parametrize(
    "step", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_requeued_fit_ends_at_the_same_weights(zoo, tmp_path, monkeypatch, slurm, step):
    whole, output = tmp_path / "whole", tmp_path / "out"
    short = ["--trainer.max_epochs", "2"]
    run(*fit(zoo, tmp_path, whole, *short))
    arguments = fit(zoo, tmp_path, output, *short)
    assert in_child(arguments, TextClassifier, "training_step", step, send(signal.SIGUSR1)) == CODE
    assert slurm.read_text() == "requeue 1234\n"
    saved = output / "hpc_ckpt_1.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == step + 1
    assert not (output / "expert").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(*arguments, "--overwrite", "true")  # of a requeued job, it does not begin anew
    for task in zoo.tasks:
        found = load_file(output / "expert" / task / "model.safetensors")
        expected = load_file(whole / "expert" / task / "model.safetensors")
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not saved.exists()


def test_a_requeued_fisher_is_the_same_bit_for_bit(zoo, tmp_path, slurm, capfd):
    whole, output = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    config = ["--config", data_config(zoo, tmp_path, "colour")]
    fisher = ["fisher", *config, "--expert", zoo.experts["colour"], "--output"]
    run(*fisher, whole)
    capfd.readouterr()
    arguments = [*fisher, output]
    assert in_child(arguments, FisherAccumulator, "add", 2, send(signal.SIGUSR1)) == CODE
    printed = capfd.readouterr().err
    assert "stopping after this batch" in printed and "the same command resumes" in printed
    assert "job 1234 is requeued" in printed and slurm.read_text() == "requeue 1234\n"
    unfinished = load_file(tmp_path / "out.unfinished-0-of-1.safetensors")
    assert int(unfinished["done"]) == 3 and not output.exists()
    run(*arguments)
    found, expected = read_fisher(output), read_fisher(whole)
    assert found[1] == expected[1]
    assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())


@pytest.mark.slow
def test_a_requeued_merge_goes_on_with_its_trials(zoo, tmp_path, slurm, monkeypatch, capsys):
    whole, output = tmp_path / "whole", tmp_path / "out"
    run(*merge(zoo, tmp_path, whole))
    arguments = [*merge(zoo, tmp_path, output), "--overwrite", "true"]
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    # SLURM may send it twice; a trial has 8 batches
    twice = send(signal.SIGUSR1, signal.SIGUSR1)
    assert in_child(arguments, TextClassifier, "validation_step", 9, twice) == CODE
    assert slurm.read_text() == "requeue 77_5\n" and trials(output) == trials(whole)[:2]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    capsys.readouterr()
    run(*arguments)  # of a requeued job, it does not begin anew
    assert "Resuming after 2 trials" in capsys.readouterr().out
    assert trials(output) == trials(whole)
    assert (output / "report.md").read_text() == (whole / "report.md").read_text()


def test_what_ends_a_job_for_good_requeues_nothing(zoo, tmp_path, slurm):
    arguments = merge(zoo, tmp_path, tmp_path / "out")
    code = in_child(arguments, TextClassifier, "validation_step", 9, send(signal.SIGTERM))
    assert code == 128 + signal.SIGTERM and not slurm.exists()


def test_a_job_that_cannot_be_requeued_says_so(zoo, tmp_path, slurm, monkeypatch, capfd):
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    arguments = merge(zoo, tmp_path, tmp_path / "out")
    code = in_child(arguments, TextClassifier, "validation_step", 9, send(signal.SIGUSR1))
    printed = capfd.readouterr().err
    assert code == CODE and "job 1234 could not be requeued" in printed
    assert "submit the same command again" in printed and len(trials(tmp_path / "out")) == 2
