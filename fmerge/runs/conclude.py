"""The end of a merge: it is tested beside its baselines, reported and saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer

from fmerge.data import MultiTask
from fmerge.evaluation.evaluator import Evaluator, by_accuracy
from fmerge.evaluation.head_refit import Heads, Refitter, Refitting
from fmerge.evaluation.test_scores import TestTable, task_facts
from fmerge.fisher import FisherSettings
from fmerge.fisher.summary import FisherSummary, summarise_fishers
from fmerge.merging.assembler import Assembler
from fmerge.merging.compatibility import task_vector_facts
from fmerge.merging.experts import Ensemble
from fmerge.methods import Average, MergeMethod
from fmerge.modules import TaskModule
from fmerge.params import Params, write_params
from fmerge.report.merge_report import MergeReport
from fmerge.report.model_card import loader_of, model_card, parameters_of
from fmerge.report.pareto_front import Front
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome, Trials
from fmerge.report.scores import AVERAGE, BASE, EXPERTS, MERGE, REFITTED, RUNNER_UP
from fmerge.runs.data_provenance import split_facts
from fmerge.search import Search, Trial, non_dominated_trials
from fmerge.search.objective import Objective
from fmerge.store import RunFolder

Baselines = Literal["all", "experts"]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The merge to conclude with: the search's best, or a trial that is built by its index.

    Attributes:
        search: The search.
        goal: What was optimised.
        best: The trial.
        trials: All trials of the run.
        built: Whether the trial is built by its index, apart from a search.
        raced: Sentences on racing, if there was any.
    """

    search: Search
    goal: Objective
    best: Trial
    trials: Sequence[Trial]
    built: bool = False
    raced: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Tests a merge, compares it with baselines and saves it with its model cards.

    Attributes:
        trainer: The Trainer whose passes score.
        module: The live module.
        data: The tasks; None where nothing is scored.
        ensemble: Base, experts and Fishers.
        method: The formula.
        settings: How Fishers that were not given were estimated.
        baselines: Which baselines are tested beside the merge.
        refitting: When heads are refitted, and on what.
        heads: The experts' own heads, by name.
        evaluator: Runs the passes over ``data``.
        refitter: Refits heads; None if they cannot or need not be refitted.
    """

    trainer: Trainer
    module: TaskModule
    data: MultiTask | None
    ensemble: Ensemble
    method: MergeMethod
    settings: FisherSettings
    baselines: Baselines
    refitting: Refitting
    heads: Mapping[str, Params]
    evaluator: Evaluator | None
    refitter: Refitter | None

    def conclude(self, chosen: Chosen, assembler: Assembler, folder: RunFolder) -> MergeReport:
        """Tests and saves a merge.

        Args:
            chosen: The merge.
            assembler: Assembles merges.
            folder: The run's folder; the first process writes to it.

        Returns:
            The report; without data it has no test scores.
        """
        # a merge lasts until the assembler makes the next one: baselines come first
        table, runner_up = self._test_baselines(chosen.search, assembler)
        fishers: list[FisherSummary] = []
        body = assembler.assemble(chosen.best.coefficients, self._summarise(fishers))
        wanted, refitter = self.refitting.wanted, self.refitter
        heads = refitter.fit(body) if wanted and refitter is not None else {}
        name = AVERAGE if isinstance(self.method, Average) else MERGE
        if table is not None:
            self._test(table, name, body, wanted, heads)
        report = MergeReport(
            search=self._search_outcome(chosen, runner_up),
            tests=TestOutcome(
                rows=[] if table is None else table.rows(),
                comparisons=[] if table is None else table.comparisons(name),
                measure=self._measure(),
                refit_heads=self.refitting.when,
                refit_examples=self.refitting.most,
            ),
            provenance=self._provenance(chosen, folder, fishers[0] if fishers else None),
        )
        place = folder.point(chosen.best.index) if chosen.built else folder.path
        self._save(body, heads, place / "merged", report)
        return report

    @property
    def _tells(self) -> bool:
        """Whether this process knows scores: the other processes' searches have no model."""
        return self.trainer.is_global_zero and self.data is not None

    def _search_outcome(self, chosen: Chosen, runner_up: Trial | None) -> SearchOutcome:
        search, front = chosen.search, chosen.search.front()
        trials = non_dominated_trials(search.history)
        return SearchOutcome(
            method=type(self.method).__name__,
            name=type(search).__name__,
            best=chosen.best,
            trials=Trials(chosen.trials),
            goal=chosen.goal,
            groups=search.groups,
            pick=search.pick() if self._tells else None,
            sensitivity=search.sensitivity() if self._tells else {},
            front=Front(search.objectives, front) if front else None,
            non_dominated=sorted(trials, key=search.rank, reverse=True),
            runner_up=runner_up,
            built=chosen.built,
        )

    def _provenance(
        self, chosen: Chosen, folder: RunFolder, fishers: FisherSummary | None
    ) -> Provenance:
        ensemble, first = self.ensemble, self.trainer.is_global_zero
        vectors = ""
        if ensemble.base is not None:
            vectors = task_vector_facts(ensemble.base, ensemble.bodies)
        return Provenance(
            experts=ensemble.sources,
            base=ensemble.base_source,
            hashes={what: folder.noted(what) for what in ("expert", "base")} if first else {},
            tasks=task_facts(self.data, folder.noted("data")) if self._tells else {},
            facts=[*self._facts(), *chosen.raced],
            parameters=parameters_of(self.method),
            vectors=vectors,
            fishers=fishers,
        )

    def _measure(self) -> str:
        tasks = [] if self.data is None else list(self.data.tasks)
        plain = all(self.data is not None and by_accuracy(self.data, task) for task in tasks)
        return "accuracy" if plain else "score"

    def _facts(self) -> list[str]:
        if self.data is None:
            return []
        ensemble = self.ensemble
        origins = ensemble.fisher_origins
        return split_facts(self.data, self.method, self.settings, origins, ensemble.tasks)

    def _test_baselines(
        self, search: Search, assembler: Assembler
    ) -> tuple[TestTable | None, Trial | None]:
        """Tests all that the merge is compared with; nothing without data."""
        if self.evaluator is None:
            return None, None
        table, ensemble, refit = TestTable(self.evaluator), self.ensemble, self.refitting.wanted
        every = self.baselines == "all"
        runner_up = search.runner_up() if search.history else None
        if every and ensemble.base is not None:
            self._test(table, BASE, ensemble.base, True)
        for name in ensemble.tasks:
            table.add(EXPERTS, ensemble.bodies[name], [name])
        if every and not isinstance(self.method, Average):
            average = Average().merge(None, list(ensemble.bodies.values()), [])
            self._test(table, AVERAGE, average, refit)
        if not every or runner_up is None:
            return table, None
        self._test(table, RUNNER_UP, assembler.assemble(runner_up.coefficients), refit)
        return table, runner_up

    def _test(
        self, table: TestTable, name: str, body: Params, refit: bool, heads: Heads | None = None
    ) -> None:
        """Tests a body under the experts' own heads and, perhaps, under refitted ones."""
        table.add(name, body, self.ensemble.tasks)
        refitter = self.refitter
        if refit and refitter is not None:
            fitted = refitter.fit(body) if heads is None else heads
            table.record(name + REFITTED, lambda: refitter.score(body, "test", fitted))

    def _summarise(
        self, fishers: list[FisherSummary]
    ) -> Callable[[Mapping[str, Any]], None] | None:
        """A callback that summarises the Fishers of a merge, if the method has any."""
        if self.method.statistic not in {"fisher", "moving fisher"}:
            return None

        def summarise(found: Mapping[str, Any]) -> None:
            if self.trainer.is_global_zero:
                fishers.append(summarise_fishers(found))

        return summarise

    def _save(self, body: Params, heads: Heads, folder: Path, report: MergeReport) -> None:
        # precisions such as bf16-true have rounded the live weights: write all of them again
        self.module.float()
        cards = {}
        for name, head in self.heads.items():
            model = self.module.task_model(name)
            write_params(model, head | heads.get(name, {}) | body)
            cards[name] = model_card(report, loader_of(model), name if head else None)
        if self.trainer.is_global_zero:
            self.module.save(folder, cards)
