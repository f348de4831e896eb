"""Batch sizes by what memory holds: found by trial, and halved where a pass runs out of it."""

import gc
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.pytorch import Trainer

from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.system.watchdog import LostProcessError

_LOG = logging.getLogger(__name__)
_WORDS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")
"""What PyTorch says on a CPU, and cuBLAS and cuDNN say, in a plain RuntimeError."""

_FASTER = 1.05
"""How much faster a larger batch must be to be worth its memory."""

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error is a lack of memory.

    Args:
        error: Any error.

    Returns:
        Whether smaller batches might help.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in _WORDS)


def in_memory(trainer: Trainer, data: MultiTask, run: Callable[[], Result]) -> Result:
    """Makes a pass, with batches of half the size wherever memory does not suffice.

    The smaller size is kept for all later passes.

    Args:
        trainer: The Trainer of the pass.
        data: Its data, whose ``batch_size`` is lowered.
        run: Makes the whole pass, with loaders it asks the data for.

    Returns:
        What it returned.

    Raises:
        UserError: If memory does not suffice for one example.
        LostProcessError: If one of several processes lacks memory: the others are in another
            batch, and wait for it.
    """  # noqa: DOC501 - errors of other kinds pass through
    while True:
        try:
            return run()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if trainer.world_size > 1:
                raise LostProcessError(
                    f"process {trainer.global_rank} is out of memory ({reason}); with a smaller "
                    "--data.batch_size it may suffice"
                ) from error
        _give_back()  # only here is the error gone, whose traceback held the pass's tensors
        if data.batch_size == 1:
            raise UserError(f"out of memory with one example in a batch ({reason})")
        before, data.batch_size = data.batch_size, data.batch_size // 2
        _LOG.warning(
            "out of memory with batches of %d (%s); the pass is repeated with batches of %d",
            before, reason, data.batch_size,
        )  # fmt: skip


def find_batch_size(
    run: Callable[[int], object], most: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Doubles the batch until it does not fit, or twice in a row was no faster per example.

    Args:
        run: Makes a pass over one batch of so many examples, the longest there are.
        most: The largest size that may be tried.
        clock: Tells the time in seconds.

    Returns:
        A power of two: the fastest of the sizes that fit; 1 if none did.
    """  # noqa: DOC501 - errors of other kinds pass through
    best, fastest, slower, size = 1, 0.0, 0, 1
    while size <= most and slower < 2:
        fits = True
        try:
            run(size)  # what the first pass of a size prepares takes no part in its speed
            begun = clock()
            run(size)
            rate = size / max(clock() - begun, 1e-9)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if not fits:
            _give_back()
            break
        if rate > _FASTER * fastest:
            best, fastest, slower = size, rate, 0
        else:
            slower += 1
        size *= 2
    return best


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
