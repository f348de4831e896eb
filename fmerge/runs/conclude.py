"""The end of a merge: tested beside what it is measured against, told of, and saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer

from fmerge.data import MultiTask
from fmerge.evaluation.evaluator import Evaluator, by_accuracy
from fmerge.fisher import FisherSettings
from fmerge.merging.experts import Ensemble
from fmerge.fisher.summary import FisherSummary, summarise_fishers
from fmerge.merging.compatibility import task_vector_facts
from fmerge.merging.assembler import Assembler
from fmerge.methods import Average, MergeMethod
from fmerge.report.model_card import loader_of, model_card, parameters_of
from fmerge.modules import TaskModule
from fmerge.search.objective import Objective
from fmerge.params import Params, write_params
from fmerge.report.pareto_front import Front
from fmerge.evaluation.head_refit import Heads, Refitter, Refitting
from fmerge.report.merge_report import MergeReport
from fmerge.report.scores import AVERAGE, BASE, EXPERTS, MERGE, REFITTED, RUNNER_UP
from fmerge.search import Search, Trial, non_dominated_trials
from fmerge.runs.data_provenance import split_facts
from fmerge.store import RunFolder
from fmerge.evaluation.test_scores import TestTable, task_facts

References = Literal["all", "experts"]


@dataclass(frozen=True)
class Conclusion:
    """Tests a merge, compares it and saves it with its model cards.

    Attributes:
        trainer: The Trainer whose passes score.
        module: The live module.
        data: The tasks; None where nothing is scored.
        ensemble: Base, experts and Fishers.
        method: The formula.
        settings: How Fishers that were not given were estimated.
        references: Which rows the table has beside the merge.
        refitting: When heads are refitted, and on what.
        heads: The experts' own heads, by name.
        evaluator: Runs the passes over ``data``.
        refitter: Refits heads; None where they cannot be, or need not.
    """

    trainer: Trainer
    module: TaskModule
    data: MultiTask | None
    ensemble: Ensemble
    method: MergeMethod
    settings: FisherSettings
    references: References
    refitting: Refitting
    heads: Mapping[str, Params]
    evaluator: Evaluator | None
    refitter: Refitter | None

    def draw(
        self,
        search: Search,
        assembler: Assembler,
        goal: Objective,
        best: Trial,
        folder: RunFolder,
        raced: Sequence[str],
        built_of: int = 0,
    ) -> MergeReport:
        """Tests and saves a merge: the search's best, or one of so many trials that is built.

        Args:
            search: The search.
            assembler: Assembles merges.
            goal: What was optimised.
            best: The trial.
            folder: The run's folder; the first process writes to it.
            raced: What racing has to say for itself.
            built_of: How many trials the run had, if the merge is built apart from a search.

        Returns:
            What was kept, with the rows of the table: none without data.
        """
        # a merge lasts until the next: what it is compared with comes first
        table, runner_up = self._references(search, assembler)
        fishers: list[FisherSummary] = []
        body = assembler.assemble(best.coefficients, self._look(fishers))
        wanted, refitter = self.refitting.wanted, self.refitter
        heads = refitter.fit(body) if wanted and refitter is not None else {}
        kept = AVERAGE if isinstance(self.method, Average) else MERGE
        if table is not None:
            self._test(table, kept, body, wanted, heads)
        first, base = self.trainer.is_global_zero, self.ensemble.base
        # the other processes were told no scores: their search has no model
        asked = first and self.data is not None
        front = search.front()
        report = MergeReport(
            type(self.method).__name__,
            type(search).__name__,
            best,
            built_of or len(search.history),
            self.ensemble.sources,
            self.ensemble.base_source,
            [] if table is None else table.rows(),
            goal,
            list(search.space.groups),
            search.pick() if asked else None,
            self._measure(),
            "" if base is None else task_vector_facts(base, self.ensemble.bodies),
            self.refitting.when,
            self.refitting.most,
            [*self._facts(), *raced],
            parameters_of(self.method),
            [] if table is None else table.comparisons(kept),
            runner_up,
            search.sensitivity() if asked else {},
            fishers[0] if fishers else None,
            task_facts(self.data, folder.noted("data")) if asked else {},
            sorted(non_dominated_trials(search.history), key=search.rank, reverse=True),
            {what: folder.noted(what) for what in ("expert", "base")} if first else {},
            Front(search.objectives, front) if front else None,
            built=built_of > 0,
        )
        place = folder.point(best.index) if built_of else folder.path
        self._save(body, heads, place / "merged", report)
        return report

    def _measure(self) -> str:
        tasks = [] if self.data is None else list(self.data.tasks)
        plain = all(self.data is not None and by_accuracy(self.data, task) for task in tasks)
        return "accuracy" if plain else "score"

    def _facts(self) -> list[str]:
        if self.data is None:
            return []
        ensemble = self.ensemble
        return split_facts(
            self.data, self.method, self.settings, ensemble.fisher_origins, ensemble.tasks
        )

    def _references(self, search: Search, assembler: Assembler) -> tuple[TestTable | None, Trial | None]:
        """Tests all that the best merge is compared with; nothing without data."""
        if self.evaluator is None:
            return None, None
        table, ensemble, refit = TestTable(self.evaluator), self.ensemble, self.refitting.wanted
        every = self.references == "all"
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

    def _look(self, fishers: list[FisherSummary]) -> Callable[[Mapping[str, Any]], None] | None:
        """What measures the Fishers of a merge, where the method has any."""
        if self.method.statistic not in {"fisher", "moving fisher"}:
            return None

        def look(found: Mapping[str, Any]) -> None:
            if self.trainer.is_global_zero:
                fishers.append(summarise_fishers(found))

        return look

    def _save(self, body: Params, heads: Heads, folder: Path, report: MergeReport) -> None:
        # precisions such as bf16-true have rounded the live weights: write them all anew
        self.module.float()
        cards = {}
        for name, head in self.heads.items():
            model = self.module.task_model(name)
            write_params(model, head | heads.get(name, {}) | body)
            cards[name] = model_card(report, loader_of(model), name if head else None)
        if self.trainer.is_global_zero:
            self.module.save(folder, cards)
