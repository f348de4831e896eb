"""The end of a merge: it is tested beside its baselines, reported and saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fmerge.evaluation.chance import below_chance
from fmerge.evaluation.evaluator import Evaluator
from fmerge.evaluation.head_refit import Heads, Refitter, using_heads
from fmerge.evaluation.statistics import Fisher, statistic_of
from fmerge.evaluation.test_scores import TestTable, task_facts
from fmerge.fisher.summary import FisherSummary, summarise_fishers
from fmerge.merging.adapter_output import Lowered
from fmerge.merging.assembler import Assembler
from fmerge.merging.compatibility import described
from fmerge.merging.distances import layer_distances
from fmerge.params import Params, write_params
from fmerge.report.distances import LayerDistances
from fmerge.report.merge_report import MergeReport
from fmerge.report.model_card import parameters_of
from fmerge.report.pareto_front import Front
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome, Trials
from fmerge.report.scores import AVERAGE, AVERAGE_TUNED, BASE, EXPERTS, REFITTED, RUNNER_UP, Row
from fmerge.runs.clock import Clock
from fmerge.runs.data_provenance import measure_of, split_facts
from fmerge.runs.finish import calibration_facts
from fmerge.runs.guards import below_average
from fmerge.runs.labels import label_facts
from fmerge.runs.pass_plan import TestedRow, tested_rows
from fmerge.runs.save import rounded, save_merge, with_changed
from fmerge.runs.stage_facts import stage_facts
from fmerge.runs.stages import Candidate
from fmerge.runs.trained_rows import TrainedRows
from fmerge.search import Search, Trial, non_dominated_trials
from fmerge.search.objective import Objective
from fmerge.store import RunFolder

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

_FACTS = {False: (), True: ("heads: merged by the same method as the body, into one model",)}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The merge to conclude with: the search's best, or a trial that is built by its index.

    Attributes:
        search: The search.
        goal: What was optimised.
        candidate: The merge, and the trial that scored it.
        trials: All trials of the run.
        built: Whether the trial is built by its index, apart from a search.
        notes: Sentences on racing and on stages, if there were any.
        targets: What the experts say of their training examples, where it is known already.
        clock: The seconds of the run's parts, where it has been timed.
    """

    search: Search
    goal: Objective
    candidate: Candidate
    trials: Sequence[Trial]
    built: bool = False
    notes: Sequence[str] = ()
    targets: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    clock: Clock | None = None

    @property
    def best(self) -> Trial:
        """The trial that scored the merge."""
        return self.candidate.trial

    @property
    def staged(self) -> list[Trial]:
        """The trials that stages made after the search."""
        return [trial for trial in self.trials if trial.stage]


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Tests a merge, compares it with baselines and saves it with its model cards.

    Attributes:
        run: The merge that ends.
        evaluator: Runs the passes over its data; None where nothing is scored.
        refitter: Refits heads; None if they cannot or need not be refitted.
    """

    run: "MergeRun"
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
        table, runner_up = self._test_baselines(chosen, assembler)
        facts = [] if table is None else self._doubts(table)
        fishers: list[FisherSummary] = []
        body = chosen.candidate.body
        if body is None:
            body = assembler.assemble(chosen.best.coefficients, self._summarise(fishers))
            facts = [*assembler.facts(chosen.best.coefficients), *facts]
        # tested as they are saved; the baselines had the experts' own
        lowered = None if self.run.adapter is None else self.run.adapter.lower(body)
        if lowered is not None:
            body = lowered.body
        wanted, refitter = self.run.refitting.wanted, self.refitter
        refitted = rounded(self.run, refitter.fit(body)) if wanted and refitter is not None else {}
        own = with_changed(self.run.heads, chosen.candidate.heads)
        for name, head in rounded(self.run, own).items():
            write_params(self.run.module.task_model(name), head)
        row = tested_rows(self.run, rival=False)[-1]
        if table is not None:
            self._test(table, row, body, refitted)
        if chosen.clock is not None:
            chosen.clock.lap("tests")
        report = MergeReport(
            search=self.search_outcome(chosen, runner_up),
            tests=TestOutcome(
                rows=[] if table is None else table.rows(),
                comparisons=[] if table is None else table.comparisons(row.name),
                measure=measure_of(self.run.data),
                refit_heads=self.run.refitting.when,
                refit_examples=self.run.refitting.most,
            ),
            provenance=self.provenance(
                chosen, folder, fishers[0] if fishers else None, facts, lowered
            ),
        )
        place = folder.point(chosen.best.index) if chosen.built else folder.path
        saved = None if lowered is None else lowered.saved
        save_merge(self.run, body, (own, refitted), report, place / "merged", saved)
        return report

    @property
    def _tells(self) -> bool:
        """Whether this process knows scores: the other processes' searches have no model."""
        return self.run.trainer.is_global_zero and self.run.data is not None

    def search_outcome(self, chosen: Chosen, runner_up: Trial | None) -> SearchOutcome:
        """Lists what was searched and chosen."""
        search, front = chosen.search, chosen.search.front()
        trials = non_dominated_trials([*search.history, *chosen.staged] if search.history else [])
        tells = self._tells and not chosen.best.stage
        return SearchOutcome(
            method=type(self.run.method).__name__,
            name=type(search).__name__,
            best=chosen.best,
            trials=Trials(chosen.trials),
            goal=chosen.goal,
            groups=list(search.space.groups),
            pick=search.pick() if tells else None,
            sensitivity=search.sensitivity() if tells else {},
            front=Front(search.objectives, front) if front else None,
            non_dominated=sorted(trials, key=search.rank, reverse=True),
            runner_up=runner_up,
            built=chosen.built,
            ended="" if chosen.built or not self._tells else search.ended,
            warning=below_average(self.run, search, chosen.best, chosen.trials),
            measure="agreement" if self.run.labels == "none" else measure_of(self.run.data),
            beliefs=search.beliefs() if tells else {},
            stages=stage_facts(search, chosen.trials, chosen.clock) if self._tells else [],
        )

    def provenance(
        self,
        chosen: Chosen,
        folder: RunFolder,
        fishers: FisherSummary | None,
        facts: Sequence[str],
        lowered: Lowered | None = None,
    ) -> Provenance:
        """Lists what the merge was made of; ``facts`` are further sentences."""
        ensemble, first = self.run.ensemble, self.run.trainer.is_global_zero
        distances = self._distances()
        based = distances is not None and ensemble.base is not None
        return Provenance(
            experts=ensemble.sources,
            base=ensemble.base_source,
            hashes={what: folder.noted(what) for what in ("expert", "base")} if first else {},
            tasks=task_facts(self.run.data, folder.noted("data")) if self._tells else {},
            facts=[*self._facts(), *chosen.notes, *_FACTS[ensemble.heads_merged], *facts],
            parameters=parameters_of(self.run.method),
            vectors=described(distances) if based and distances is not None else "",
            distances=distances,
            fishers=fishers,
            saved="" if lowered is None else lowered.fact,
        )

    def _distances(self) -> LayerDistances | None:
        ensemble = self.run.ensemble
        network = self.run.module.task_model(ensemble.tasks[0])
        weights = dict(network.named_parameters())  # buffers have no task vectors

        def counted(body: Params) -> Params:
            return {name: one for name, one in body.items() if name in weights}

        base = None if ensemble.base is None else counted(ensemble.base)
        return layer_distances(base, {name: counted(b) for name, b in ensemble.bodies.items()})

    def _facts(self) -> list[str]:
        if self.run.data is None:
            return []
        ensemble = self.run.ensemble
        origins = ensemble.fisher_origins
        facts = split_facts(
            self.run.data, self.run.method, self.run.settings, origins, ensemble.tasks
        )
        return [*facts, *label_facts(self.run.labels), *calibration_facts(self.run)]

    def _test_baselines(
        self, chosen: Chosen, assembler: Assembler
    ) -> tuple[TestTable | None, Trial | None]:
        """Tests all that the merge is compared with; nothing without data."""
        if self.evaluator is None:
            return None, None
        table, ensemble = TestTable(self.evaluator), self.run.ensemble
        search, runner_up = chosen.search, None
        if search.history:  # a stage has improved on the search's best
            runner_up = search.best() if chosen.best.stage else search.runner_up()
        *baselines, _ = tested_rows(self.run, rival=runner_up is not None)
        for row in baselines:
            if row.name == EXPERTS:
                for name in ensemble.tasks:
                    table.add(EXPERTS, ensemble.bodies[name], [name])
            elif row.name == BASE and ensemble.base is not None:
                self._test(table, row, ensemble.base)
            elif row.name == AVERAGE:
                self._test(table, row, assembler.average())
            elif row.trained:
                body = assembler.average() if row.name == AVERAGE_TUNED else ensemble.base
                assert body is not None  # else there were no such row
                self._test_trained(table, row.name, body, chosen)
            elif runner_up is not None:
                rival = assembler.of(runner_up.method)
                self._test(table, row, rival.assemble(runner_up.coefficients))
        tested = any(row.name == RUNNER_UP for row in baselines)
        return table, runner_up if tested else None

    def _test_trained(self, table: TestTable, name: str, body: Params, chosen: Chosen) -> None:
        """Trains a row as long as the merge was, and tests it under its own heads."""
        rows = TrainedRows(self.run, chosen.staged)
        body, heads = rows.train(name, body, chosen.search, chosen.goal, chosen.targets)
        with using_heads(self.run.module, heads):
            table.add(name, body, self.run.ensemble.tasks)

    def _doubts(self, table: TestTable) -> list[str]:
        """Sentences on experts that are worse than guessing."""
        rows = [row for row in table.rows() if isinstance(row, Row) and row.name == EXPERTS]
        experts = rows[0].scores if rows else {}
        assert self.run.data is not None  # else there were no table
        return below_chance(self.run.data, experts, "test")

    def _test(
        self, table: TestTable, row: TestedRow, body: Params, heads: Heads | None = None
    ) -> None:
        """Tests a body under the experts' own heads and, for some rows, under refitted ones."""
        table.add(row.name, body, self.run.ensemble.tasks)
        if row.refitted and (refitter := self.refitter) is not None:
            fitted = refitter.fit(body) if heads is None else heads
            table.record(row.name + REFITTED, lambda: refitter.score(body, "test", fitted))

    def _summarise(
        self, fishers: list[FisherSummary]
    ) -> Callable[[Mapping[str, Any]], None] | None:
        """A callback that summarises the Fishers of a merge, if the method has any."""
        if not isinstance(statistic_of(self.run.method), Fisher):
            return None

        def summarise(found: Mapping[str, Any]) -> None:
            if self.run.trainer.is_global_zero:
                fishers.append(summarise_fishers(found))

        return summarise
