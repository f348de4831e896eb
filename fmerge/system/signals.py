"""Ctrl-C and SIGTERM: the first one ends a search after its trial, a Fisher after its batch."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from fmerge.system.distributed import gather
from fmerge.system.slurm import requeue_on_signal, requeue_signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def catch_signals(
    trainer: Trainer, after: str = "trial", together: bool = True
) -> Iterator[Callable[[], int]]:
    """Records a request to stop, for a loop that ends at its next safe point.

    A second signal raises ``SystemExit`` at once. SLURM's signal before the end of a job's time
    is a request as well; the job is then put back into the queue.

    Args:
        trainer: The Trainer whose passes run inside the block.
        after: What is finished first, for the message.
        together: Whether all processes ask at the same times; otherwise each process knows only
            of its own signal.

    Yields:
        A function that returns the number of the signal that any process got, or 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # Python delivers signals to the main thread alone
        return
    requests: list[int] = []
    requeue = requeue_signal(trainer)
    signals = SIGNALS if requeue is None else (*SIGNALS, signal.Signals(requeue))

    def handle(number: int, frame: Any) -> None:
        if requests:
            if number == requests[0] == requeue:
                return  # SLURM may send its signal to the job and to the job's step
            # a third signal must end the process even if the exception is caught somewhere
            for one in signals:
                signal.signal(one, signal.SIG_DFL)
            _kill_started(trainer)
            raise SystemExit(128 + (requeue if requests[0] == requeue else number))
        requests.append(number)
        if trainer.is_global_zero:
            # not print, whose buffer the signal may have interrupted in the middle of a write
            os.write(2, f"\nfmerge: stopping after this {after}; once more to stop now\n".encode())

    # Lightning's own handler would end the running pass, and its exception the whole search
    connector: Any = trainer._signal_connector
    before = {one: signal.signal(one, handle) for one in signals}
    connector.register_signal_handlers = lambda: None
    try:
        with requeue_on_signal(trainer):
            yield lambda: _requested(trainer, requests[0] if requests else 0, together)
    finally:
        del connector.register_signal_handlers
        for one, handler in before.items():
            # None: a handler that was not installed from Python, which cannot be restored
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


def _requested(trainer: Trainer, number: int, together: bool) -> int:
    # processes must stop after the same trial: one that went on would wait for the others
    return max(gather(trainer, number)) if together else number


def _kill_started(trainer: Trainer) -> None:
    """Kills the processes that this one started, which would wait for it in a collective."""
    launcher: Any = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signal.SIGKILL)
