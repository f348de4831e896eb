"""Batch sizes by what memory holds: found by trial, and halved where a pass runs out of it."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from fmerge.data import MultiTask, Split
from fmerge.data.excerpts import longest
from fmerge.errors import UserError, shortened
from fmerge.fisher import Estimator
from fmerge.system.watchdog import LostProcessError

MOST = {"cpu": 256}
"""Largest size tried on a CPU, whose memory is hardly a bound; elsewhere ``MOST_ELSEWHERE``."""

MOST_ELSEWHERE = 4096

_LOG = logging.getLogger(__name__)
_WORDS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")
"""Words of PyTorch on a CPU, cuBLAS and cuDNN, which raise a plain RuntimeError."""

_FASTER = 1.05
"""Speedup per example that makes a larger batch worth its memory."""

Result = TypeVar("Result")


class BatchSizes:
    """Runs passes with the given batch size, or one that is found for each kind of pass.

    Args:
        trainer: The Trainer of the passes.
        data: Their data, whose ``batch_size`` is set.

    Attributes:
        found: Kind of pass to its batch size.
        note: Is called with ``found`` after every change.
    """

    def __init__(self, trainer: Trainer, data: MultiTask) -> None:
        self.trainer = trainer
        self.data = data
        self.found: dict[str, int] = {}
        self.note: Callable[[dict[str, int]], None] = lambda found: None

    def make(
        self, kind: str, split: Split, tasks: Sequence[str], whole: Callable[[MultiTask], Result]
    ) -> Result:
        """Runs a pass, in smaller batches where memory does not suffice.

        Args:
            kind: Passes of one kind take the same memory for an example.
            split: The split of the pass.
            tasks: The tasks of the pass.
            whole: Runs the whole pass over given data, or over a few examples to try a size.

        Returns:
            What ``whole`` returned.
        """
        if not self.data.automatic:
            return in_memory(self.trainer, self.data, lambda: whole(self.data))
        if kind not in self.found:
            self._keep(kind, self._find(split, tasks, whole))
        self.data.batch_size = self.found[kind]
        result = in_memory(self.trainer, self.data, lambda: whole(self.data))
        self._keep(kind, self.data.batch_size)
        return result

    def _find(
        self, split: Split, tasks: Sequence[str], whole: Callable[[MultiTask], object]
    ) -> int:
        most = MOST.get(self.trainer.strategy.root_device.type, MOST_ELSEWHERE)
        there = max(len(self.data.tasks[task].examples(split)) for task in tasks)
        # how many sizes are tried must not change what later passes draw
        with isolate_rng():
            return find_batch_size(
                lambda size: whole(longest(self.data, tasks, size)), min(most, there)
            )

    def _keep(self, kind: str, size: int) -> None:
        if self.found.get(kind) != size:
            self.found[kind] = size
            self.note(self.found)


def check_automatic(trainer: Trainer, data: MultiTask, estimator: Estimator, errors: bool) -> None:
    """Refuses an automatic batch size where the result would depend on it.

    Args:
        trainer: The Trainer.
        data: The data.
        estimator: How Fishers are estimated.
        errors: Whether their standard errors are estimated.

    Raises:
        UserError: If the result depends on batches, or several processes would have to agree.
    """
    if not data.automatic:
        return
    if estimator == "rademacher":
        reason = "the signs of rademacher are drawn for whole batches"
    elif errors:
        reason = "--until and --standard_error compare whole batches"
    elif trainer.world_size > 1:
        reason = f"{trainer.world_size} processes cannot each try what fits"
    else:
        return
    raise UserError(f"--data.batch_size: is auto, but {reason}; give a number")


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error is due to a lack of memory.

    Args:
        error: Any error.

    Returns:
        Whether smaller batches might help.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in _WORDS)


def in_memory(trainer: Trainer, data: MultiTask, run: Callable[[], Result]) -> Result:
    """Runs a pass, and repeats it with half the batch size while memory does not suffice.

    Later passes have the smaller size too.

    Args:
        trainer: The Trainer of the pass.
        data: Its data, whose ``batch_size`` is lowered.
        run: Runs the whole pass, with loaders it asks the data for.

    Returns:
        What ``run`` returned.

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
            reason = shortened(error, 200) or type(error).__name__
            if trainer.world_size > 1:
                raise LostProcessError(
                    f"process {trainer.global_rank} is out of memory ({reason}); with a smaller "
                    "--data.batch_size it may suffice"
                ) from error
        # not in the except block: until it ends, the error's traceback holds the pass's tensors
        _release_memory()
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
    """Doubles the batch until it does not fit, or is twice in a row no faster per example.

    Args:
        run: Runs a pass over one batch of the given size, of the longest examples.
        most: The largest size that may be tried.
        clock: Returns the time in seconds.

    Returns:
        A power of two: the fastest of the sizes that fit; 1 if none did.
    """  # noqa: DOC501 - errors of other kinds pass through
    best, fastest, slower, size = 1, 0.0, 0, 1
    while size <= most and slower < 2:
        fits = True
        try:
            run(size)  # the first pass of a size also allocates and compiles, which is not timed
            begun = clock()
            run(size)
            rate = size / max(clock() - begun, 1e-9)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if not fits:
            _release_memory()
            break
        if rate > _FASTER * fastest:
            best, fastest, slower = size, rate, 0
        else:
            slower += 1
        size *= 2
    return best


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
