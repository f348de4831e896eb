"""Ctrl-C and SIGTERM: the first ends a search after a trial, a Fisher after a batch."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from fmerge.system.slurm import requeue_signal, requeueing

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def asking_to_stop(
    trainer: Trainer, after: str = "trial", together: bool = True
) -> Iterator[Callable[[], int]]:
    """Notes a request to stop, for a loop that ends when it suits it.

    Lightning's own handler would end the pass of the running trial, and its exception the search:
    it is kept from registering. A second signal raises ``SystemExit`` wherever the process is.
    Under SLURM its signal before the end of a job's time asks as well; the job is then put back.

    Args:
        trainer: The trainer whose passes run inside the block.
        after: What is finished first, for the message.
        together: Whether all processes ask at the same times; otherwise each knows its own signal.

    Yields:
        Tells the number of the signal that any process got, 0 if none did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # signals come to the main thread alone
        return
    asked: list[int] = []
    back = requeue_signal(trainer)
    signals = SIGNALS if back is None else (*SIGNALS, signal.Signals(back))

    def handle(number: int, frame: Any) -> None:
        if asked:
            if number == asked[0] == back:
                return  # SLURM may send it to the job and to its step
            for one in signals:
                signal.signal(one, signal.SIG_DFL)
            _end_others(trainer)
            raise SystemExit(128 + (back if asked[0] == back else number))
        asked.append(number)
        if trainer.is_global_zero:
            # print is not safe here: the signal may have come in the middle of another
            os.write(2, f"\nfmerge: stopping after this {after}; once more to stop now\n".encode())

    connector: Any = trainer._signal_connector
    before = {one: signal.signal(one, handle) for one in signals}
    connector.register_signal_handlers = lambda: None
    try:
        with requeueing(trainer):
            yield lambda: _asked(trainer, asked[0] if asked else 0, together)
    finally:
        del connector.register_signal_handlers
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


def _asked(trainer: Trainer, number: int, together: bool) -> int:
    if trainer.world_size == 1 or not together:
        return number
    from torch import distributed

    numbers = [0] * trainer.world_size
    distributed.all_gather_object(numbers, number)
    return max(numbers)


def _end_others(trainer: Trainer) -> None:
    """Ends the processes that this one started, which wait for it in vain."""
    launcher: Any = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signal.SIGKILL)
