"""What a stage after the search works with: scores, the log, and what is kept of its merges."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from fmerge.errors import UserError
from fmerge.evaluation.head_refit import Heads
from fmerge.merging.assembler import Assembler
from fmerge.merging.trials import attempt
from fmerge.params import Params
from fmerge.runs.clock import Clock
from fmerge.runs.stages import PLAIN_AVERAGE, Candidate
from fmerge.search import Search, Trial
from fmerge.search.objective import Objective
from fmerge.store import RunFolder, read_candidate, remove_partial, write_candidate

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class StageContext:
    """What a stage works with.

    Attributes:
        run: The merge.
        search: The finished search.
        goal: What is maximised.
        assembler: Assembles the search's merges.
        folder: The run's folder; the first process writes to it.
        trials: All trials so far, in order.
        stop: Tells the number of the signal that asked to stop, or 0.
        notes: Sentences for the report.
        targets: What the experts say of their training examples, computed once for all stages.
        clock: Takes the stages' times, where the run has one.
    """

    run: "MergeRun"
    search: Search
    goal: Objective
    assembler: Assembler
    folder: RunFolder
    trials: list[Trial]
    stop: Callable[[], int] = lambda: 0
    notes: list[str] = field(default_factory=list)
    targets: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    clock: Clock | None = None
    _recalled: list[Trial] = field(default_factory=list)

    def run_stages(
        self, start: Candidate, known: Sequence[Trial], stop: Callable[[], int]
    ) -> Candidate:
        """Runs all stages.

        Args:
            start: The search's best merge.
            known: The stages' trials of an interrupted run.
            stop: See the attribute.

        Returns:
            The best merge of all; the earlier of equal ones.

        Raises:
            UserError: If the log has a trial that no stage makes.
        """
        self._recalled, self.stop = list(known), stop
        best = start
        for stage in self.run.stages:
            found = stage.run(self, best)
            if self.is_better(found.trial, best.trial):
                best = found
        if self._recalled:
            raise UserError(_misplaced(self._recalled[0], "no further one"))
        return best

    def is_better(self, trial: Trial, than: Trial) -> bool:
        """Compares two trials as the search does, its bounds included.

        Args:
            trial: One trial.
            than: The other.

        Returns:
            Whether the first was scored and has the higher rank.
        """
        return trial.status == "ok" and self.search.rank(trial) > self.search.rank(than)

    def body_of(self, candidate: Candidate) -> Params:
        """Finds the tensors of a merge.

        Args:
            candidate: The merge.

        Returns:
            Its body: only to be read, and valid until the assembler makes the next.
        """
        if candidate.body is not None:
            return candidate.body
        trial = candidate.trial
        return self.assembler.of(trial.method).assemble(trial.coefficients)

    def score(
        self,
        stage: str,
        coefficients: Mapping[str, float],
        merge: Callable[[], Params],
        heads: Heads | None = None,
    ) -> Trial:
        """Scores a merge on the validation split as the stage's next trial, and logs it.

        Args:
            stage: The stage's name.
            coefficients: What the report calls the merge by; empty where it has none.
            merge: Makes the body, in ``Assembler.dtypes``.
            heads: Heads of its own, if it has any.

        Returns:
            The trial; of an interrupted run the one that was logged.

        Raises:
            SystemExit: If the run is asked to stop.
            UserError: If the log has another trial in its place.
        """
        if self._recalled:
            trial = self._recalled.pop(0)
            if trial.stage != stage or trial.coefficients.keys() != coefficients.keys():
                raise UserError(_misplaced(trial, f"one of stage {stage}"))
            self.trials.append(trial)
            return trial
        if number := self.stop():
            raise SystemExit(128 + number)
        trial = attempt(
            len(self.trials),
            coefficients,
            lambda _: merge(),
            lambda body: self.run.validate(body, self.goal, heads),
            stage,
        )
        self.trials.append(trial)
        if self.run.trainer.is_global_zero:
            self.folder.append(trial.as_record())
        if self.clock is not None:
            self.clock.lap(stage)
        return trial

    def late(self, stage: str) -> bool:
        """Tells whether a stage has no time for a further trial.

        Args:
            stage: The stage's name.

        Returns:
            Whether its share of the budget is spent.
        """
        return self.clock is not None and self.clock.over(stage)

    def logged(self, stage: str) -> int:
        """Counts the trials in the log that the next calls of ``score`` give back.

        Args:
            stage: The stage's name.

        Returns:
            How many come next that are of the stage.
        """
        return sum(1 for _ in takewhile(lambda trial: trial.stage == stage, self._recalled))

    def say(self, note: str) -> None:
        """Says something on the terminal and in the report.

        Args:
            note: One sentence.
        """
        rank_zero_only(_LOG.warning)(note)
        self.notes.append(note)

    def keep(self, candidate: Candidate) -> None:
        """Keeps a stage's best merge in the run's folder, instead of its last one.

        Args:
            candidate: The merge, with a body.
        """
        if self.run.trainer.is_global_zero and candidate.body is not None:
            path = self.folder.candidate(candidate.trial.stage)
            write_candidate(path, candidate.trial.index, candidate.body, candidate.heads)

    def kept(self, trial: Trial) -> Candidate:
        """Reads a merge back that was kept.

        Args:
            trial: The trial that scored it.

        Returns:
            The merge, the same on all processes.
        """
        found: tuple[Params, Mapping[str, Params]] = {}, {}
        if self.run.trainer.is_global_zero:
            found = read_candidate(self.folder.candidate(trial.stage), trial.index)
        body, heads = self.run.trainer.strategy.broadcast(found)
        return Candidate(trial, body, heads)

    def rebuild(self, trial: Trial) -> Candidate:
        """Makes the merge of a trial of a finished run again.

        Args:
            trial: The trial.

        Returns:
            The merge.
        """
        for stage in self.run.stages:
            if stage.name == trial.stage:
                return stage.rebuild(self, trial)
        return self.kept(trial) if trial.stage else Candidate(trial)

    def forget(self) -> None:
        """Removes what only an interrupted stage would need."""
        if self.run.trainer.is_global_zero:
            for stage in self.run.stages:
                remove_partial(self.folder.state(stage.name))


def staged_so_far(
    search: Search, staged: Sequence[Trial], forget: Callable[[int], None]
) -> Sequence[Trial]:
    """Checks that the trials of stages follow the last of the search.

    Args:
        search: The search, with its trials replayed.
        staged: The stages' trials of an interrupted run.
        forget: Shortens the log to so many trials.

    Returns:
        The stages' trials; without that of the plain average, which is scored again, where the
        search is to make more.

    Raises:
        UserError: If the search is not finished although another stage has begun.
    """
    if search.finished:
        return staged
    if staged and all(trial.stage == PLAIN_AVERAGE for trial in staged):
        forget(len(search.history))
        return []
    if staged:
        raise UserError(
            f"trials.jsonl: trial {staged[0].index} is of stage {staged[0].stage}, after which the "
            "search cannot make more; name another --output, or add --overwrite true"
        )
    return staged


def _misplaced(trial: Trial, due: str) -> str:
    return (
        f"trials.jsonl: trial {trial.index} is of stage {trial.stage}, but {due} was due; begin "
        "anew with --overwrite true"
    )
