"""SLURM's signal before the end of a job's time: save, requeue the job, and end."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

_NAME = "hpc_ckpt_1.ckpt"
"""Lightning's name for the checkpoint of a requeued job, which its ``fit`` looks for."""


def requeue_signal(trainer: Trainer) -> int | None:
    """Finds the signal on which a job is requeued.

    Args:
        trainer: The Trainer.

    Returns:
        The signal's number; None outside of SLURM, or where ``auto_requeue`` is off.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def requeue() -> None:
    """Puts this job back into SLURM's queue, and prints whether that succeeded."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    # not a shell, and only digits: nothing in the environment can become a command
    reason = "SLURM_JOB_ID is no number"
    if re.fullmatch("[0-9]+(_[0-9]+)?", job):
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
            sys.stderr.write(f"fmerge: job {job} is requeued\n")
            return
        except (OSError, subprocess.CalledProcessError) as error:
            reason = str(error)
    sys.stderr.write(
        f"fmerge: job {job} could not be requeued ({reason}); submit the same command again\n"
    )


def is_requeued(trainer: Trainer) -> bool:
    """Tells whether this job was requeued and runs again.

    Args:
        trainer: The Trainer.

    Returns:
        Whether SLURM counts a restart.
    """
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return requeue_signal(trainer) is not None and count.isdigit() and int(count) > 0


def requeued_checkpoint(trainer: Trainer, overwrite: bool) -> Path | None:
    """Finds the checkpoint from which a requeued fit is resumed.

    Args:
        trainer: The Trainer, in whose ``default_root_dir`` it is.
        overwrite: Whether a job that was not requeued begins anew.

    Returns:
        The checkpoint; None if there is none, or outside of SLURM.
    """
    path = Path(trainer.default_root_dir) / _NAME
    if requeue_signal(trainer) is None or not path.is_file():
        return None
    if overwrite and not is_requeued(trainer):
        if trainer.is_global_zero:
            path.unlink()  # Lightning would resume from it by itself
        return None
    return path


class RequeueCallback(Callback):
    """Ends a fit on SLURM's signal: after the batch it saves, requeues the job and exits.

    Lightning's own handler saves at once, even in the middle of a step.
    """

    def __init__(self) -> None:
        self._requested = False

    @contextmanager
    def catching_signal(self, trainer: Trainer) -> Iterator[None]:
        """Records the signal during a fit.

        Args:
            trainer: The Trainer that fits.

        Yields:
            Nothing.
        """
        number = requeue_signal(trainer)
        if number is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(*_: object) -> None:
            self._requested = True

        # Lightning installs its own handler only where there is none yet
        before = signal.signal(number, handle)
        trainer.callbacks.append(self)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            trainer.callbacks.remove(self)  # type: ignore[attr-defined]
            signal.signal(number, signal.SIG_DFL if before is None else before)
        # only where the fit has ended by itself: a later one must not resume from it
        if trainer.is_global_zero:
            (Path(trainer.default_root_dir) / _NAME).unlink(missing_ok=True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves and exits if any process got the signal.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
            outputs: What ``training_step`` returned; required by Lightning.
            batch: The batch; required by Lightning.
            batch_idx: The batch's index; required by Lightning.

        Raises:
            SystemExit: If a process got it, after the checkpoint is saved.
        """
        # every process takes part in this reduction and in saving: they must decide alike
        if not trainer.strategy.reduce_boolean_decision(self._requested, all=False):
            return
        trainer.save_checkpoint(Path(trainer.default_root_dir) / _NAME)
        if trainer.is_global_zero:
            requeue()
        raise SystemExit(128 + int(requeue_signal(trainer) or 0))


@contextmanager
def requeue_on_signal(trainer: Trainer) -> Iterator[None]:
    """Requeues the job if the block ends by SLURM's signal.

    Args:
        trainer: The Trainer.

    Yields:
        Nothing.
    """  # noqa: DOC501 - what the block raises passes through
    try:
        yield
    except SystemExit as end:
        number = requeue_signal(trainer)
        if number is not None and end.code == 128 + number and trainer.is_global_zero:
            requeue()
        raise
