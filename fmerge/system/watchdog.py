"""Several processes on one machine: when one is lost, the others end with one line."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, subprocess_script

from fmerge.errors import UserError
from fmerge.system.fsdp2 import FSDP2Strategy

_STARTER = "FMERGE_STARTED_BY"
_GRACE = 10.0
"""Seconds in which the main thread may notice the loss itself, and say more about it."""

_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "NCCL")
"""What Gloo and NCCL say when another process is gone."""

_TO_RESUME = (
    "finished work is saved: give the same command to resume (a fit with --ckpt_path of its "
    "last.ckpt)"
)

_started: list[subprocess.Popen[bytes]] = []
_starter: list[int] = []
"""Id of the process that started this one; empty in the first process."""


class LostProcessError(RuntimeError):
    """Another process of the command is gone.

    The message is one line, or empty where the first process prints it.
    """


def check_strategy(trainer: Trainer, split: bool = False) -> None:
    """Refuses strategies under which a Fisher or a merge would be wrong or lost.

    Args:
        trainer: The Trainer.
        split: Whether parameters may be split over processes by FSDP2.

    Raises:
        UserError: If the strategy splits parameters over processes, or starts processes whose
            results are lost.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__.removesuffix("Strategy")
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise UserError(
            f"--trainer.strategy: {name} splits a parameter over processes, so that no process "
            "sees an example's whole gradient or a whole merge; use fsdp2, ddp or a single device"
        )
    if isinstance(strategy, ModelParallelStrategy) and not split:
        raise UserError(
            f"--trainer.strategy: {name} splits a model over processes, and a merge needs whole "
            "tensors; merge on one device without data, tensor by tensor, and score the merge by "
            "fmerge validate --trainer.strategy fsdp2"
        )
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2Strategy):
        raise UserError(f"--trainer.strategy: {name} has options of its own; use fsdp2")
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            f"--trainer.strategy: {name} runs in spawned or forked processes, whose results do "
            "not come back; use ddp"
        )


@contextmanager
def watch_processes() -> Iterator[None]:
    """Ends every process of a command when one of them is lost.

    The first process watches those that it started, and each of those watches the first one.

    Yields:
        Nothing.

    Raises:
        LostProcessError: If a pass failed because another process was lost.
    """  # noqa: DOC501 - what else the block raises passes through
    # Lightning's own observer kills the first process too, which then cannot say why
    module: Any = subprocess_script
    before = module._launch_process_observer
    # set by the first process, inherited by those it starts; a pid tells them from a command
    # that was started inside another one
    starter = os.environ.get(_STARTER)
    if starter == str(os.getppid()):
        _starter.append(os.getppid())
        threading.Thread(target=_watch_starter, args=(os.getppid(),), daemon=True).start()
    else:
        os.environ[_STARTER] = str(os.getpid())
    _started.clear()
    module._launch_process_observer = _watch_started
    try:
        yield
    except RuntimeError as error:
        line = _loss(error)
        _end_started()
        if line is None:
            raise
        raise LostProcessError(line) from error
    except BaseException:
        _end_started()  # they would wait for this one in a collective
        raise
    finally:
        module._launch_process_observer = before
        if starter is None:
            del os.environ[_STARTER]


def _loss(error: BaseException) -> str | None:
    """Words an error caused by the end of another process; None for other errors."""
    if not any(one in str(error) for one in _LOST):
        return None
    if _starter:
        # if the first process is gone, the thread that watches it ends this process meanwhile
        time.sleep(1)
        return ""  # otherwise the first process prints the line
    deadline = time.monotonic() + _GRACE
    # a broken connection may be noticed before the system reports the exit code
    while _started and time.monotonic() < deadline:
        if (line := _first_lost(_started)) is not None:
            return line
        time.sleep(0.05)
    if _started:
        return None  # all are alive: the error has another cause
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
    return f"process {rank} lost its connection to the others; {_TO_RESUME}"


def _first_lost(started: list[subprocess.Popen[bytes]]) -> str | None:
    """Words how the first of some processes was lost; None if all run or ended well."""
    codes = {rank: process.poll() for rank, process in enumerate(started, start=1)}
    # the loss of one makes the others fail: a signal is the cause, an exit code may be an effect
    for rank, code in sorted(codes.items(), key=lambda one: (one[1] or 0) >= 0):
        if code:
            how = f"with exit code {code}" if code > 0 else f"by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", as where memory is short"
            return f"process {rank} of {len(started) + 1} ended {how}; {_TO_RESUME}"
    return None


def _end_started() -> None:
    for process in _started:
        process.kill()


def _watch_started(started: list[subprocess.Popen[bytes]]) -> None:
    _started[:] = started

    def watch() -> None:
        while (line := _first_lost(started)) is None:
            if all(process.returncode == 0 for process in started):
                return
            time.sleep(0.5)
        time.sleep(_GRACE)
        # the main thread still waits in a collective, where no exception can reach it
        _end_started()
        os.write(2, f"fmerge: error: {line}\n".encode())
        os._exit(1)

    # a daemon: it must not keep the command from ending
    threading.Thread(target=watch, daemon=True, name="watch-processes").start()


def _watch_starter(starter: int) -> None:
    # a process whose parent has ended gets another parent
    while os.getppid() == starter:
        time.sleep(0.2)
    os.write(2, f"fmerge: error: the first process is gone; {_TO_RESUME}\n".encode())
    os._exit(1)
