"""SLURM's signal before a job's time is over: save, put the job back into the queue, end."""

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
"""As Lightning calls a checkpoint of a job that is to be put back."""


def requeue_signal(trainer: Trainer) -> int | None:
    """Tells the signal after which a job is put back into the queue.

    Args:
        trainer: The Trainer.

    Returns:
        The signal's number; None outside of SLURM, or where its environment was told not to.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def requeue() -> None:
    """Puts this job back into SLURM's queue, and says whether that went well."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
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
    """Tells whether this job has been put back into the queue, and goes on now.

    Args:
        trainer: The Trainer.

    Returns:
        Whether SLURM counts a restart.
    """
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return requeue_signal(trainer) is not None and count.isdigit() and int(count) > 0


def requeued_checkpoint(trainer: Trainer, overwrite: bool) -> Path | None:
    """Finds what a fit that was put back into the queue goes on from.

    Args:
        trainer: The Trainer, in whose ``default_root_dir`` it is.
        overwrite: Whether a job that is not a requeued one shall begin anew.

    Returns:
        The checkpoint; None if there is none, or this is no job of SLURM's.
    """
    path = Path(trainer.default_root_dir) / _NAME
    if requeue_signal(trainer) is None or not path.is_file():
        return None
    if overwrite and not is_requeued(trainer):
        if trainer.is_global_zero:
            path.unlink()  # Lightning would go on from it
        return None
    return path


class RequeuedFit(Callback):
    """Saves after the batch in which the signal came, puts the job back and ends the process.

    Lightning's own handler saves wherever the signal comes, also in the middle of a step.
    """

    def __init__(self) -> None:
        self._asked = False

    @contextmanager
    def listening(self, trainer: Trainer) -> Iterator[None]:
        """Notes the signal, in whose place Lightning then sets none.

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
            self._asked = True

        before = signal.signal(number, handle)
        trainer.callbacks.append(self)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            trainer.callbacks.remove(self)  # type: ignore[attr-defined]
            signal.signal(number, signal.SIG_DFL if before is None else before)
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
        """Ends the process if any process got the signal.

        Args:
            trainer: The Trainer.
            pl_module: Not used.
            outputs: Not used.
            batch: Not used.
            batch_idx: Not used.

        Raises:
            SystemExit: If so, once all is saved.
        """
        if not trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            return
        trainer.save_checkpoint(Path(trainer.default_root_dir) / _NAME)
        if trainer.is_global_zero:
            requeue()
        raise SystemExit(128 + int(requeue_signal(trainer) or 0))


@contextmanager
def requeueing(trainer: Trainer) -> Iterator[None]:
    """Puts the job back where a block ends by the signal.

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
