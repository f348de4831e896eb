"""Ctrl-C and SIGTERM during a search: the first ends it after a trial, the second at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def asking_to_stop(trainer: Trainer) -> Iterator[Callable[[], int]]:
    """Notes a request to stop, for a loop that ends when it suits it.

    Lightning's own handler would end the pass of the running trial, and its exception the search:
    it is kept from registering. A second signal raises ``SystemExit`` wherever the process is.

    Args:
        trainer: The trainer whose passes run inside the block.

    Yields:
        Tells the number of the signal that any process got, 0 if none did; all processes must
        ask together.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # signals come to the main thread alone
        return
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked:
            for one in SIGNALS:
                signal.signal(one, signal.SIG_DFL)
            _end_others(trainer)
            raise SystemExit(128 + number)
        asked.append(number)
        if trainer.is_global_zero:
            # print is not safe here: the signal may have come in the middle of another
            os.write(2, b"\nfmerge: stopping after this trial; once more to stop now\n")

    connector: Any = trainer._signal_connector
    before = {one: signal.signal(one, handle) for one in SIGNALS}
    connector.register_signal_handlers = lambda: None
    try:
        yield lambda: _anywhere(trainer, asked[0] if asked else 0)
    finally:
        del connector.register_signal_handlers
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


def _anywhere(trainer: Trainer, number: int) -> int:
    if trainer.world_size == 1:
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
