"""Which passes over data a merge makes: stated once, for the run and for its dry run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fmerge.data import MultiTask, Split
from fmerge.evaluation.passes import Pass, Passes
from fmerge.evaluation.statistics import Fisher, statistic_of
from fmerge.report.scores import AVERAGE, BASE, EXPERTS, MERGE, RUNNER_UP
from fmerge.runs.finish import calibration_of
from fmerge.runs.portfolio import distinct
from fmerge.runs.trained_rows import TrainedRows

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

Baselines = Literal["all", "experts"]
"""Which rows the table has beside the merge; see ``FMergeTrainer.merge``."""


@dataclass(frozen=True)
class TestedRow:
    """A row of the table of test scores.

    Attributes:
        name: What it is.
        refitted: Whether the model is tested a second time, with refitted heads.
        assembled: Whether it is a merge by the run's method, whose statistics it needs.
        trained: Whether it is trained as long as the merge, on the same examples.
    """

    __test__ = False  # to pytest

    name: str
    refitted: bool = False
    assembled: bool = False
    trained: bool = False


def tested_rows(run: "MergeRun", rival: bool) -> list[TestedRow]:
    """Lists what a run tests, in order.

    Args:
        run: The merge.
        rival: Whether there is a second best trial.

    Returns:
        The rows; the last is the merge that is saved.
    """
    # an assembled merge is valid until the next one: the merge to be saved comes last
    wanted, every = run.refitting.wanted, run.baselines == "all"
    rows = [TestedRow(BASE, refitted=run.can_refit)] if every and run.ensemble.base else []
    rows.append(TestedRow(EXPERTS))
    if every and not run.is_average:
        rows.append(TestedRow(AVERAGE, refitted=wanted))
    if every and rival:
        rows.append(TestedRow(RUNNER_UP, refitted=wanted, assembled=True))
    rows += [TestedRow(name, trained=True) for name in TrainedRows(run).losses]
    own = AVERAGE if run.is_average else MERGE
    return [*rows, TestedRow(own, refitted=wanted, assembled=True)]


@dataclass(frozen=True)
class PassPlan:
    """The passes of a whole merge.

    Attributes:
        run: The merge.
        trials: How many trials its search makes.
        own_scores: Whether the experts' own validation scores are needed.
        resuming: Whether a run is resumed, whose finished trials are counted all the same.
    """

    run: "MergeRun"
    trials: int
    own_scores: bool
    resuming: bool = False

    def passes(self) -> Passes:
        """Counts the passes.

        Returns:
            How often each is made, at most: racing and ``until`` end some early, of a curve only
            the nodes that a trial needs are computed, and the merge that was assembled last is
            not assembled again.
        """
        passes = Passes()
        data = self.run.data
        if data is None:
            return passes
        for task in self.run.ensemble.tasks:
            self._add_scores(passes, data, task)
        self._add_statistics(passes, data)
        self._add_calibrations(passes, data)
        for stage in self.run.stages:
            passes += stage.passes(self.run)
        passes += TrainedRows(self.run).passes()
        return +passes

    @property
    def has_rival(self) -> bool:
        """Whether there will be a runner-up, at most."""
        return self.trials > 1 or any(stage.improves for stage in self.run.stages)

    def _add_scores(self, passes: Passes, data: MultiTask, task: str) -> None:
        rows, refitting = tested_rows(self.run, self.has_rival), self.run.refitting
        refits = sum(row.refitted for row in rows)

        def scored(split: Split) -> Pass:
            return Pass("score", task, split, data.size(task, split))

        asked = self.own_scores or self.run.labels == "none"
        passes[scored("validation")] += self.trials + asked
        passes[scored("test")] += len(rows) + refits
        # the features of a refit cost a forward pass, as a score does
        fits = refits + self.trials * (refitting.when == "trials")
        if fits:
            examples = data.size(task, "train", refitting.most)
            passes[Pass("score", task, "train", examples)] += fits

    def _add_statistics(self, passes: Passes, data: MultiTask) -> None:
        for run in distinct(self.run.members):
            self._add_statistic(passes, data, run)

    def _add_statistic(self, passes: Passes, data: MultiTask, run: "MergeRun") -> None:
        settings, statistic = run.settings, run.estimated
        if statistic is None:
            return
        rows = tested_rows(run, self.has_rival)
        # a Fisher that moves is estimated for the rows again: other merges came in between
        merges = self.trials + sum(row.assembled for row in rows)
        for name in run.ensemble.names:
            task = run.task_of(name)
            examples = data.size(task, settings.split, settings.examples)
            one = Pass(statistic.cost, task, settings.split, examples)
            passes[one] += statistic.passes(settings, merges)

    def _add_calibrations(self, passes: Passes, data: MultiTask) -> None:
        # of a portfolio at most one method is assembled in a trial
        found = (run for run in self.run.members.values() if calibration_of(run) is not None)
        run = next(found, None)
        calibration = None if run is None else calibration_of(run)
        if run is None or calibration is None:
            return
        rows = tested_rows(run, self.has_rival)
        merges = self.trials + sum(row.assembled for row in rows)
        # a single trial is the merge, which is assembled again only to look at its Fishers
        fishers = isinstance(statistic_of(run.method), Fisher)
        merges -= not self.has_rival and not fishers
        if calibration.method is None:  # the plain average has its statistics computed as well
            merges += sum(row.name == AVERAGE and not row.assembled for row in rows)
        for one, count in calibration.passes(data).items():
            passes[one] += count * merges
