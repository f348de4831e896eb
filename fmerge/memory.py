"""Passes that run out of memory are repeated with smaller batches."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.pytorch import Trainer

from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.processes import LostProcessError

_LOG = logging.getLogger(__name__)
_WORDS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")
"""What PyTorch says on a CPU, and cuBLAS and cuDNN say, in a plain RuntimeError."""

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
        # only here is the error gone, whose traceback held the pass's tensors
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if data.batch_size == 1:
            raise UserError(f"out of memory with one example in a batch ({reason})")
        before, data.batch_size = data.batch_size, data.batch_size // 2
        _LOG.warning(
            "out of memory with batches of %d (%s); the pass is repeated with batches of %d",
            before, reason, data.batch_size,
        )  # fmt: skip
