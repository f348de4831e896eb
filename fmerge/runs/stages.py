"""What follows a search: stages that improve its best merge, whose trials continue its log."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from fmerge.evaluation.head_refit import Heads
from fmerge.evaluation.passes import Passes
from fmerge.params import Params
from fmerge.search import Trial

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun
    from fmerge.runs.stage_context import StageContext


PLAIN_AVERAGE = "average"
"""The stage of the trial that is the plain average; it follows the search."""


@dataclass(frozen=True)
class Candidate:
    """A merge that may be saved.

    Attributes:
        trial: The trial that scored it.
        body: Body tensors by name; None where they are assembled from the trial's coefficients.
        heads: Task name to the tensors of its head that differ from the expert's own.
    """

    trial: Trial
    body: Params | None = None
    heads: Heads = field(default_factory=dict)


class Stage(ABC):
    """One way to improve a merge after the search.

    Attributes:
        name: What its trials are called in the log; also the name of its files.
        improves: Whether it may find a merge that is saved instead of the search's best.
    """

    name: ClassVar[str]
    improves: ClassVar[bool] = True

    def check(self, run: "MergeRun") -> None:  # noqa: B027  # a stage may need nothing
        """Checks that the stage can run, before any long work.

        Args:
            run: The merge.

        Raises:
            UserError: If it cannot.
        """

    def passes(self, run: "MergeRun") -> Passes:
        """Counts the passes over data that the stage makes, at most.

        Args:
            run: The merge.

        Returns:
            How often each is made.
        """
        return Passes()

    @abstractmethod
    def run(self, context: "StageContext", start: Candidate) -> Candidate:
        """Improves a merge; what it does must depend on its settings and on ``start`` alone.

        An interrupted run calls it again: ``context.score`` then gives the trials back that are
        in the log, so that work which the stage has saved for itself need not be repeated.

        Args:
            context: Scores, logs and keeps.
            start: The best merge so far.

        Returns:
            The stage's best merge, or ``start``.
        """

    def rebuild(self, context: "StageContext", trial: Trial) -> Candidate:
        """Makes the merge of one of the stage's trials again, for ``--build``.

        Args:
            context: Knows the run's folder.
            trial: The trial.

        Returns:
            The merge, as it was kept.
        """
        return context.kept(trial)
