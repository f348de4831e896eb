"""One merge from its inputs to its folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from lightning.pytorch import Trainer

from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.evaluation.agreement import Agreement
from fmerge.evaluation.evaluator import Evaluator
from fmerge.evaluation.head_refit import Heads, Refitter, Refitting, obstacle
from fmerge.evaluation.statistics import Statistic, statistic_of
from fmerge.fisher import FisherSettings
from fmerge.merging.adapter_output import AdapterOutput
from fmerge.merging.assembler import Assembler
from fmerge.merging.assemblers import Assemblers
from fmerge.merging.experts import Ensemble
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.merging.racing import race_facts
from fmerge.merging.trials import replayed
from fmerge.methods import Average, MergeMethod
from fmerge.modules import TaskModule
from fmerge.params import Params
from fmerge.report.merge_report import MergeReport
from fmerge.runs.balance import with_balance
from fmerge.runs.clock import Clock, checked, clock_of, watch
from fmerge.runs.conclude import Chosen, Conclusion
from fmerge.runs.labels import Labels
from fmerge.runs.own_scores import own_scores
from fmerge.runs.pass_plan import Baselines
from fmerge.runs.pools import pool_of
from fmerge.runs.portfolio import Portfolio, assembler_of, members_of, portfolio_facts
from fmerge.runs.stage_context import StageContext, staged_so_far
from fmerge.runs.stages import Candidate, Stage
from fmerge.runs.trial_scores import trial_scores
from fmerge.search import Search, Trial
from fmerge.search.objective import Objective, Scores
from fmerge.store import RunFolder, SavedForm

_SIZES = "batch sizes"


@dataclass(frozen=True, kw_only=True)
class MergeRun:
    """The long part of a merge: search, the best merge once more, test, save.

    Attributes:
        trainer: The Trainer whose passes score.
        module: The live module; it must adopt the ensemble's models before ``run``.
        data: The tasks; None where nothing is scored.
        ensemble: Base, experts and Fishers.
        method: The formula.
        settings: How Fishers that are not given are estimated.
        heads: The experts' own heads, by name: copies, as the live networks are written to.
        baselines: Which rows the table has beside the merge.
        refitting: When heads are refitted, and on what; never, if left out.
        forms: Task name to the form that its merged model is written in.
        stages: What improves the search's best, in order.
        labels: Which labels may be read before the test.
        budget: Seconds for the search and the stages; None for no limit.
        adapter: How the merge is made an adapter, if it is.
    """

    trainer: Trainer
    module: TaskModule
    data: MultiTask | None
    ensemble: Ensemble
    method: MergeMethod
    settings: FisherSettings
    heads: Mapping[str, Params]
    baselines: Baselines = "all"
    refitting: Refitting = Refitting()
    forms: Mapping[str, SavedForm] = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    labels: Labels = "all"
    budget: float | None = None
    adapter: AdapterOutput | None = None

    @property
    def estimated(self) -> Statistic | None:
        """The statistic that this run estimates: none where files give it, or none is needed."""
        statistic = statistic_of(self.method)
        given = statistic is not None and statistic.from_files and not statistic.moves
        return None if given and self.ensemble.fishers else statistic

    def run(
        self,
        optimizer: MergeOptimizer,
        search: Search,
        folder: RunFolder,
        done: Sequence[Mapping[str, Any]] = (),
        stop: Callable[[], int] = lambda: 0,
    ) -> MergeReport:
        """Runs the search, then tests and saves the best; the first process writes.

        Args:
            optimizer: Runs the trials.
            search: A started search.
            folder: The run's folder.
            done: Records of the trials of an interrupted run; those of the first process count.
            stop: Tells the number of the signal that asked to stop after a trial, or 0.

        Returns:
            The merge that was saved, with the rows of the table: none without data.
        """
        self.trainer.strategy.setup_environment()
        if self.data is not None and self.data.automatic:  # a resumed run has the same
            self.evaluator.sizes.note = partial(folder.note, _SIZES)
        goal, assembler = self._begin(optimizer, search, folder)
        clock = clock_of(self, folder)
        # started again: the bounds are shares of the experts' scores, known only now
        search.start(with_balance(search.space, assembler, self.trainer, folder), goal)
        # every process replays, as each decides for itself whether the search is finished
        known = [Trial.from_record(one) for one in self.trainer.strategy.broadcast(list(done))]
        staged = [trial for trial in known if trial.stage]
        watch(search, clock, bool(staged))
        replayed(self.trainer, search, known[: len(known) - len(staged)])
        forget = folder.forget if self.trainer.is_global_zero else lambda _: None
        staged = list(staged_so_far(search, staged, forget))
        stop = checked(stop, search, clock)
        with pool_of(self, optimizer, search, goal, assembler, clock) as pool:
            best = optimizer.optimize(self.trainer, search, pool, folder.append, stop)
        own, assembler = self.members[best.method], assembler.of(best.method)
        context = own._context(search, goal, assembler, folder, search.history, clock)
        raced = [race_facts(search.history)] if optimizer.racing else portfolio_facts(search)
        context.notes += raced
        final = context.run_stages(Candidate(best), staged, stop)
        chosen = Chosen(
            search=search, goal=goal, candidate=final, trials=context.trials,
            notes=context.notes, targets=context.targets, clock=clock,
        )  # fmt: skip
        report = own._conclusion().conclude(chosen, assembler, folder)
        context.forget()
        return report

    def build(
        self,
        optimizer: MergeOptimizer,
        search: Search,
        folder: RunFolder,
        index: int,
        records: Sequence[Mapping[str, Any]],
    ) -> MergeReport:
        """Assembles one trial of a finished run again, tests it and saves it; no trial is made.

        Args:
            optimizer: As for ``run``.
            search: The run's search, which is not asked.
            folder: The run's folder.
            index: The trial's.
            records: Those of the run's trials; those of the first process count.

        Returns:
            What was built, with the rows of the table: none without data.
        """
        self.trainer.strategy.setup_environment()
        known = self.trainer.strategy.broadcast(list(records))
        trials = [Trial.from_record(record) for record in known]
        goal, assembler = self._begin(optimizer, search, folder)
        method = trials[index].method
        own, assembler = self.members[method], assembler.of(method)
        context = own._context(search, goal, assembler, folder, trials)
        built = context.rebuild(trials[index])
        chosen = Chosen(search=search, goal=goal, candidate=built, trials=trials, built=True)
        return own._conclusion().conclude(chosen, assembler, folder)

    def _begin(
        self, optimizer: MergeOptimizer, search: Search, folder: RunFolder
    ) -> tuple[Objective, Assemblers]:
        if self.data is not None and self.data.automatic:
            self.evaluator.sizes.found |= folder.noted(_SIZES) or {}
        if self.data is not None and self.labels == "none":
            tasks = self.ensemble.tasks
            self.agreement.ask({task: self.ensemble.bodies[task] for task in tasks})
        own = own_scores(self, folder) if optimizer.needs_experts else {}
        goal = optimizer.goal(self.ensemble.tasks, own)
        if len(self.members) > 1:
            return goal, Portfolio(self.members, search.space, folder)
        return goal, assembler_of(self, search.space, folder, self.statistics())

    def _context(
        self,
        search: Search,
        goal: Objective,
        assembler: Assembler,
        folder: RunFolder,
        trials: Sequence[Trial],
        clock: Clock | None = None,
    ) -> StageContext:
        return StageContext(
            run=self, search=search, goal=goal, assembler=assembler,
            folder=folder, trials=list(trials), clock=clock,
        )  # fmt: skip

    @cached_property
    def members(self) -> Mapping[str, "MergeRun"]:
        """Method to the run by it alone, where there is a portfolio."""
        return members_of(self)

    @property
    def is_average(self) -> bool:
        """Whether the merge is the plain average, which then needs no row of its own."""
        return isinstance(self.method, Average) and not self.stages

    @property
    def can_refit(self) -> bool:
        """Whether heads can be refitted; one that tasks share could fit one of them only."""
        shared = self.ensemble.heads_merged
        return not (shared or obstacle(self.module, self.data, self.ensemble.models))

    @property
    def probed(self) -> bool:
        """Whether the table has the base under refitted heads, where these can be."""
        given = self.ensemble.base is not None and not self.ensemble.heads_merged
        return self.baselines == "all" and given and self.labels == "all"

    def _conclusion(self) -> Conclusion:
        # heads are refitted for the merge, or for the table's base alone
        fits = self.refitting.wanted or (self.probed and self.can_refit)
        return Conclusion(
            run=self, evaluator=None if self.data is None else self.evaluator,
            refitter=self.refitter if fits else None,
        )  # fmt: skip

    @cached_property
    def evaluator(self) -> Evaluator:
        """Runs the passes over the data, which there must be."""
        if self.data is None:
            raise UserError("there are no data to score on; give --data")
        return Evaluator(self.trainer, self.module, self.data)

    @cached_property
    def agreement(self) -> Agreement:
        """Scores without labels."""
        return Agreement(self.evaluator)

    @cached_property
    def refitter(self) -> Refitter:
        """Refits heads."""
        return Refitter(self.evaluator, self.refitting, self.ensemble.tasks)

    def validate(self, body: Params, goal: Objective, heads: Heads | None = None) -> Scores:
        """Scores the merge of a trial; see ``trial_scores``."""
        return trial_scores(self, body, goal, heads)

    @contextmanager
    def live(self, body: Params) -> Iterator[None]:
        """A body in the live module, under the heads that trials are scored with."""
        with ExitStack() as stack:
            if self.refitting.when == "trials":
                stack.enter_context(self.refitter.fitted(body))
            else:
                self.evaluator.write_body(body)
            yield

    def task_of(self, name: str) -> str:
        """Names the task whose examples an expert's statistics are estimated on.

        Args:
            name: The expert.

        Returns:
            Its own; of a donor the target's, under whose head its body is used.
        """
        return name if name in self.ensemble.models else self.ensemble.tasks[0]

    def estimate(self, name: str, body: Params) -> Mapping[str, Any]:
        """Estimates the statistic that the method needs.

        Args:
            name: The expert.
            body: Where it is taken.

        Returns:
            The statistic by the names of tensors.
        """
        statistic = statistic_of(self.method)
        assert statistic is not None  # asked for by methods that need one
        return statistic.estimate(self.evaluator, self.task_of(name), self.settings, body)

    def statistics(self) -> Mapping[str, Mapping[str, Any]] | None:
        """The statistics that do not move with the coefficients."""
        estimated = self.estimated
        if estimated is None or estimated.moves:
            return self.ensemble.fishers
        return {name: self.estimate(name, body) for name, body in self.ensemble.bodies.items()}
