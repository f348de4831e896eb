"""When a job is requeued, by which command, and what a requeued one resumes from."""

import signal
import subprocess
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from fmerge.system import slurm
from fmerge.system.slurm import (
    RequeueCallback,
    is_requeued,
    requeue,
    requeue_on_signal,
    requeue_signal,
    requeued_checkpoint,
)

CODE = 128 + signal.SIGUSR2


class FakeTrainer:
    """A trainer of rank 0 in a job of SLURM, which saves empty checkpoints."""

    def __init__(self, folder, environment=None, any_process=None):
        self.default_root_dir = str(folder)
        self._accelerator_connector = SimpleNamespace(
            cluster_environment=environment
            or SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR2)
        )
        self.is_global_zero = True
        self.callbacks = []
        self.strategy = SimpleNamespace(
            reduce_boolean_decision=lambda own, all: own if any_process is None else any_process
        )

    def save_checkpoint(self, path):
        path.touch()


@pytest.fixture
def commands(monkeypatch):
    """The commands that are run, in a job with the id 12."""
    found = []
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(slurm.subprocess, "run", lambda command, check: found.append(command))
    return found


def test_the_signal_is_that_of_lightnings_environment(tmp_path):
    assert requeue_signal(FakeTrainer(tmp_path)) == signal.SIGUSR2
    assert requeue_signal(FakeTrainer(tmp_path, LightningEnvironment())) is None
    assert requeue_signal(FakeTrainer(tmp_path, SLURMEnvironment(auto_requeue=False))) is None


def test_a_job_or_a_task_of_an_array_is_requeued(commands, monkeypatch, capsys):
    requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert commands == [["scontrol", "requeue", "12"], ["scontrol", "requeue", "7_3"]]
    assert capsys.readouterr().err.splitlines() == [
        "fmerge: job 12 is requeued", "fmerge: job 7_3 is requeued",
    ]  # fmt: skip


@pytest.mark.parametrize("job", ["", "12; rm x", "--help", "7_"])
def test_an_id_that_is_none_runs_no_command(commands, monkeypatch, capsys, job):
    monkeypatch.setenv("SLURM_JOB_ID", job)
    requeue()
    assert not commands
    line = capsys.readouterr().err
    assert "could not be requeued (SLURM_JOB_ID is no number); submit the same command" in line


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no scontrol"), subprocess.CalledProcessError(1, "scontrol")]
)
def test_a_command_that_fails_is_told(commands, monkeypatch, capsys, error):
    def fail(command, check):
        raise error

    monkeypatch.setattr(slurm.subprocess, "run", fail)
    requeue()
    assert f"job 12 could not be requeued ({error}); submit" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "expected"), [("0", False), ("2", True), ("x", False)])
def test_slurm_counts_restarts(commands, monkeypatch, tmp_path, count, expected):
    assert not is_requeued(FakeTrainer(tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    assert is_requeued(FakeTrainer(tmp_path)) is expected
    assert not is_requeued(FakeTrainer(tmp_path, LightningEnvironment()))


def test_a_requeued_fit_resumes_and_a_new_one_that_overwrites_does_not(
    commands, monkeypatch, tmp_path
):
    trainer, saved = FakeTrainer(tmp_path), tmp_path / "hpc_ckpt_1.ckpt"
    assert requeued_checkpoint(trainer, overwrite=False) is None
    saved.touch()
    assert requeued_checkpoint(trainer, overwrite=False) == saved
    assert requeued_checkpoint(FakeTrainer(tmp_path, LightningEnvironment()), True) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeued_checkpoint(trainer, overwrite=True) == saved
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert requeued_checkpoint(trainer, overwrite=True) is None and not saved.exists()


@pytest.mark.parametrize(("code", "requeued"), [(CODE, True), (143, False), (0, False)])
def test_a_block_that_ends_by_the_signal_requeues(commands, tmp_path, code, requeued):
    with pytest.raises(SystemExit) as end, requeue_on_signal(FakeTrainer(tmp_path)):
        raise SystemExit(code)
    assert end.value.code == code and bool(commands) is requeued


def test_a_fit_saves_and_ends_after_the_batch_of_the_signal(commands, tmp_path):
    trainer, callback = FakeTrainer(tmp_path), RequeueCallback()
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(SystemExit) as end, callback.catching_signal(trainer):
        assert trainer.callbacks == [callback]
        callback.on_train_batch_end(trainer, None, None, None, 0)
        assert not list(tmp_path.iterdir())
        signal.raise_signal(signal.SIGUSR2)
        assert not list(tmp_path.iterdir()), "saved in the middle of a step"
        callback.on_train_batch_end(trainer, None, None, None, 1)
    assert end.value.code == CODE and commands == [["scontrol", "requeue", "12"]]
    assert (tmp_path / "hpc_ckpt_1.ckpt").exists() and not trainer.callbacks
    assert signal.getsignal(signal.SIGUSR2) == before


def test_the_signal_of_another_process_counts(commands, tmp_path):
    trainer = FakeTrainer(tmp_path, any_process=True)
    with pytest.raises(SystemExit):
        RequeueCallback().on_train_batch_end(trainer, None, None, None, 0)


def test_a_fit_that_ends_by_itself_leaves_no_checkpoint_to_resume_from(tmp_path):
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    with RequeueCallback().catching_signal(FakeTrainer(tmp_path, LightningEnvironment())):
        pass
    assert (tmp_path / "hpc_ckpt_1.ckpt").exists()  # not of this job
    with RequeueCallback().catching_signal(FakeTrainer(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())
