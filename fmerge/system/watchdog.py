"""Several processes on one machine: when one is lost, the others end, and one line says so."""

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

_STARTER = "FMERGE_STARTED_BY"
_GRACE = 10.0
"""Seconds in which the first process may find out by itself, and end in its own words."""

_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "NCCL")
"""What the backends say when another process is gone."""

_GOING_ON = (
    "what was finished is saved: the same command goes on (a fit with --ckpt_path of its last.ckpt)"
)

_started: list[subprocess.Popen[bytes]] = []
_starter: list[int] = []
"""The process that started this one, if this is not the first."""


class LostProcessError(RuntimeError):
    """Another process of the command is gone; the message is one line, or empty if it is said."""


def check_strategy(trainer: Trainer) -> None:
    """Refuses strategies under which a Fisher or a merge would be wrong or lost.

    Args:
        trainer: The Trainer.

    Raises:
        UserError: If its strategy splits parameters over processes, or starts processes whose
            results do not come back.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__.removesuffix("Strategy")
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
        raise UserError(
            f"--trainer.strategy: {name} splits a parameter over processes, so that no process "
            "sees an example's whole gradient or a whole merge; use ddp or a single device"
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            f"--trainer.strategy: {name} runs in spawned or forked processes, whose results do "
            "not come back; use ddp"
        )


@contextmanager
def watching_processes() -> Iterator[None]:
    """Ends every process of a command when one of them is lost.

    Lightning kills the first process as well, which then cannot say why; its watcher is replaced.
    The others watch the first one: where a backend waits for its peers they would live on.

    Yields:
        Nothing.

    Raises:
        LostProcessError: If a pass failed because another process was lost.
    """  # noqa: DOC501 - what else the block raises passes through
    module: Any = subprocess_script  # the watcher's name in it is private
    before = module._launch_process_observer
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
        _end_started()  # they wait for this one in vain
        raise
    finally:
        module._launch_process_observer = before
        if starter is None:
            del os.environ[_STARTER]


def _loss(error: BaseException) -> str | None:
    """Words an error that comes of another process's end; None if it does not."""
    if not any(one in str(error) for one in _LOST):
        return None
    if _starter:
        time.sleep(1)  # the thread that watches the first process ends this one if that is gone
        return ""  # otherwise the first process says it
    deadline = time.monotonic() + _GRACE
    while _started and time.monotonic() < deadline:
        if (line := _first_lost(_started)) is not None:
            return line
        time.sleep(0.05)
    if _started:
        return None  # they live: it is another kind of error
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
    return f"process {rank} lost its connection to the others; {_GOING_ON}"


def _first_lost(started: list[subprocess.Popen[bytes]]) -> str | None:
    codes = {rank: process.poll() for rank, process in enumerate(started, start=1)}
    # the death of one makes the others end with errors: a signal came first
    for rank, code in sorted(codes.items(), key=lambda one: (one[1] or 0) >= 0):
        if code:
            how = f"with exit code {code}" if code > 0 else f"by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", as where memory is short"
            return f"process {rank} of {len(started) + 1} ended {how}; {_GOING_ON}"
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
        # the main thread hangs in a collective, where no exception reaches it
        _end_started()
        os.write(2, f"fmerge: error: {line}\n".encode())
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-processes").start()


def _watch_starter(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(0.2)
    os.write(2, f"fmerge: error: the first process is gone; {_GOING_ON}\n".encode())
    os._exit(1)
