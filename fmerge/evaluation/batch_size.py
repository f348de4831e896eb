"""Batch sizes that nobody gave: found by trial, one for each kind of pass."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from fmerge.data import MultiTask, Split
from fmerge.data.excerpts import longest
from fmerge.errors import UserError
from fmerge.evaluation.memory import find_batch_size, in_memory
from fmerge.fisher import Estimator

MOST = {"cpu": 256}
"""Largest size that is tried on a CPU, whose memory is no bound; elsewhere ``MOST_ELSEWHERE``."""

MOST_ELSEWHERE = 4096

Result = TypeVar("Result")


class BatchSizes:
    """Makes passes with the batch size that was given, or one found on the first pass of a kind.

    Args:
        trainer: The Trainer of the passes.
        data: Their data, whose ``batch_size`` is set.

    Attributes:
        found: Kind of pass to the size it has.
        note: Is told of every change of ``found``.
    """

    def __init__(self, trainer: Trainer, data: MultiTask) -> None:
        self.trainer = trainer
        self.data = data
        self.found: dict[str, int] = {}
        self.note: Callable[[dict[str, int]], None] = lambda found: None

    def make(
        self, kind: str, split: Split, tasks: Sequence[str], whole: Callable[[MultiTask], Result]
    ) -> Result:
        """Makes a pass, in smaller batches where memory does not suffice.

        Args:
            kind: What passes are alike in the memory that an example takes.
            split: The split that it is over.
            tasks: The tasks that it is over.
            whole: Makes the whole pass over given data; also over a few examples, to try a size.

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
        with isolate_rng():
            return find_batch_size(
                lambda size: whole(longest(self.data, tasks, size)), min(most, there)
            )

    def _keep(self, kind: str, size: int) -> None:
        if self.found.get(kind) != size:
            self.found[kind] = size
            self.note(self.found)


def check_automatic(trainer: Trainer, data: MultiTask, estimator: Estimator, errors: bool) -> None:
    """Refuses to look for a batch size where the result would depend on it.

    Args:
        trainer: The Trainer.
        data: The data.
        estimator: How Fishers are estimated.
        errors: Whether their standard errors are.

    Raises:
        UserError: If batches enter the result, or processes would have to agree on a size.
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
