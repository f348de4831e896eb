"""Where the trials of a batch are made: one after the other in this process, or elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from fmerge.merging.assemblers import Assemblers
from fmerge.merging.trials import Proposal, Score, attempt
from fmerge.search import Trial


class Pool(Protocol):
    """Makes the trials of a batch."""

    def run(self, batch: Sequence[Proposal], stop: Callable[[], int]) -> Iterator[Trial]:
        """Makes trials.

        Args:
            batch: What is tried.
            stop: Tells, on all processes, the number of the signal that asked to stop, or 0.

        Yields:
            The trials in the order of the batch; fewer where it is asked to stop, once those
            that run have ended.
        """


@final
@dataclass(frozen=True)
class InProcess:
    """Makes one trial after the other, on the run's own Trainer.

    Attributes:
        assembler: Assembles the weights of a trial.
        score: Scores them, on all processes.
    """

    assembler: Assemblers
    score: Score

    def run(self, batch: Sequence[Proposal], stop: Callable[[], int]) -> Iterator[Trial]:
        """Makes trials; see ``Pool``."""
        for one in batch:
            if one is not batch[0] and stop():
                return
            merge = self.assembler.of(one.method).assemble
            yield attempt(one.index, one.coefficients, merge, self.score, method=one.method)
