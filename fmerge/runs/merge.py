"""One merge from its inputs to its folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

from lightning.pytorch import Trainer

from fmerge.evaluation.batch_size import check_automatic
from fmerge.runs.conclude import Baselines, Chosen, Conclusion
from fmerge.data import MultiTask, Split
from fmerge.errors import UserError
from fmerge.evaluation.evaluator import Evaluator, by_accuracy
from fmerge.fisher import FisherSettings
from fmerge.merging.experts import Ensemble
from fmerge.evaluation.grams import grams_of
from fmerge.merging.optimizer import MergeOptimizer, Score
from fmerge.merging.assembler import Assembler
from fmerge.methods import Grams, MergeMethod
from fmerge.modules import TaskModule
from fmerge.search.objective import Objective, Scores
from fmerge.params import Params, fingerprint, params_of
from fmerge.merging.racing import Race, check_racing, race_facts
from fmerge.evaluation.head_refit import Refitter, Refitting, check_refitting, obstacle
from fmerge.report.merge_report import MergeReport
from fmerge.search import Search, Trial
from fmerge.store import RunFolder, FisherCache

_OWN = "experts' validation scores"
_SIZES = "batch sizes"


class MergeRun:
    """The long part of a merge: search, the best merge once more, test, save.

    Args:
        trainer: The Trainer whose passes score.
        module: The live module; it must adopt the ensemble's models before ``run``.
        data: The tasks; None where nothing shall be scored.
        ensemble: Base, experts and Fishers.
        method: The formula.
        settings: How Fishers that are not given are estimated.
        references: Which rows the table has beside the merge.
        refitting: When heads are refitted, and on what; never, if left out.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: TaskModule,
        data: MultiTask | None,
        ensemble: Ensemble,
        method: MergeMethod,
        settings: FisherSettings,
        references: Baselines = "all",
        refitting: Refitting | None = None,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.data = data
        self.ensemble = ensemble
        self.method = method
        self.settings = settings
        self.references = references
        self.refitting = refitting or Refitting()
        self.heads = {
            name: {
                key: tensor.clone()
                for key, tensor in params_of(model).items()
                if key not in ensemble.bodies[name]
            }
            for name, model in ensemble.models.items()
        }

    def check(self, search: Search, grouped: bool, racing: bool = False) -> None:
        """Proves that the data have what the run will need, before its long part.

        Args:
            search: The search.
            grouped: Whether an expert has several coefficients.
            racing: Whether hopeless trials are to be stopped.

        Raises:
            UserError: If data are needed and missing, or a split is, or a curve of Fishers is
                wanted along several coefficients, or heads that cannot be are to be refitted, or
                a task cannot be raced.
        """
        if self.settings.curve and grouped:
            raise UserError(
                "--fisher.curve: a Fisher is a curve over one coefficient, but --optimizer.groups "
                "gives each expert several; leave one of the two out"
            )
        models = self.ensemble.models
        check_refitting(self.refitting, self.module, self.data, models, self._probed)
        statistic = self.method.statistic
        estimated = statistic in {"moving fisher", "gram"} or (
            statistic == "fisher" and not self.ensemble.fishers
        )
        if self.data is None:
            if estimated:
                name = type(self.method).__name__
                what = "Grams" if statistic == "gram" else "Fishers"
                raise UserError(f"{name}: needs data to estimate {what} on; give --data")
            return
        self.data.check_splits("validation", "test")
        if racing:
            check_racing(self.trainer, self.data)
        errors = self.settings.errors is not None
        kind = self.settings.estimator if estimated else "exact"
        check_automatic(self.trainer, self.data, kind, estimated and errors)
        for task in self.data.tasks:
            if search.needs_errors and not by_accuracy(self.data, task):
                raise UserError(
                    f"{type(search).__name__}: binomial noise is that of an accuracy, but task "
                    f"'{task}' is scored by {', '.join(self.data.metrics[task])}; use noise infer"
                )
        if estimated:
            self.data.check_splits(self.settings.split)

    def inputs(self) -> dict[str, Any]:
        """Tells the models and the data of this run from others.

        Returns:
            Hashes by expert and by task.
        """
        whole = self.ensemble.models
        models = {  # of a donor the body alone takes part
            name: fingerprint(params_of(whole[name]) if name in whole else body)
            for name, body in self.ensemble.bodies.items()
        }
        base = self.ensemble.base
        data = self.data
        splits: dict[str, Split] = {"data": "validation"}
        if self.refitting.when == "trials":
            splits["training data"] = "train"
        return {
            "expert": models,
            "base": None if base is None else fingerprint(base),
            **{
                name: {} if data is None else {t: data.fingerprint(t, split) for t in data.tasks}
                for name, split in splits.items()
            },
        }

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
            What was kept, with the rows of the table: none without data.
        """
        self.trainer.strategy.setup_environment()
        if self.data is not None and self.data.automatic:  # a run that goes on has the same
            self._evaluator.sizes.note = partial(folder.note, _SIZES)
        goal, assembler = self._begin(optimizer, folder)
        search.constrain(goal.bounds)
        for record in self.trainer.strategy.broadcast(list(done)):
            search.replay(Trial.from_record(record))
        score: Score = lambda body: self._validate(body, goal)  # noqa: E731
        if optimizer.racing:
            tasks = self.ensemble.tasks
            race = Race(self._evaluator, self.module, search, goal, tasks, self._worn)
            race.recall(assembler)
            score = race.score
        best = optimizer.optimize(
            self.trainer,
            search,
            assembler,
            score,
            folder.append,
            stop,
        )
        raced = [race_facts(search.history)] if optimizer.racing else []
        trials = search.history
        chosen = Chosen(search=search, goal=goal, best=best, trials=trials, raced=raced)
        return self._conclusion().conclude(chosen, assembler, folder)

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
            index: The trial's index.
            records: The records of the run's trials; those of the first process count.

        Returns:
            What was built, with the rows of the table: none without data.
        """
        self.trainer.strategy.setup_environment()
        known = self.trainer.strategy.broadcast(list(records))
        trials = [Trial.from_record(record) for record in known]
        goal, assembler = self._begin(optimizer, folder)
        best = trials[index]
        chosen = Chosen(search=search, goal=goal, best=best, trials=trials, built=True)
        return self._conclusion().conclude(chosen, assembler, folder)

    def _begin(self, optimizer: MergeOptimizer, folder: RunFolder) -> tuple[Objective, Assembler]:
        if self.data is not None and self.data.automatic:
            self._evaluator.sizes.found |= folder.noted(_SIZES) or {}
        goal = optimizer.goal(self._own_scores(folder) if optimizer.needs_experts else {})
        weight = next(iter(next(iter(self.ensemble.bodies.values())).values()))
        return goal, Assembler(
            self.method,
            self.ensemble.base,
            self.ensemble.bodies,
            self._fisher,
            self._statistics(),
            optimizer.parts,
            self.settings.curve,
            FisherCache(folder.path, weight.device).keep,
        )

    @property
    def _probed(self) -> bool:
        """Whether the table has the base under refitted heads, where these can be."""
        return self.references == "all" and self.ensemble.base is not None

    def _conclusion(self) -> Conclusion:
        fits = self.refitting.wanted or (
            self._probed and not obstacle(self.module, self.data, self.ensemble.models)
        )
        return Conclusion(
            trainer=self.trainer,
            module=self.module,
            data=self.data,
            ensemble=self.ensemble,
            method=self.method,
            settings=self.settings,
            baselines=self.references,
            refitting=self.refitting,
            heads=self.heads,
            evaluator=None if self.data is None else self._evaluator,
            refitter=self._refitter if fits else None,
        )

    @cached_property
    def _evaluator(self) -> Evaluator:
        if self.data is None:
            raise UserError("there are no data to score on; give --data")
        return Evaluator(self.trainer, self.module, self.data)

    @cached_property
    def _refitter(self) -> Refitter:
        return Refitter(self._evaluator, self.refitting, self.ensemble.tasks)

    def _validate(self, body: Params, goal: Objective) -> Scores:
        if self.data is None:
            return Scores()
        if self.refitting.when == "trials":
            metrics = self._refitter.score(body, "validation", self._refitter.fit(body))
        else:
            metrics = self._evaluator.score(body, "validation", self.ensemble.tasks)
        return goal.of(metrics, self._evaluator.errors(metrics, "validation"))

    @contextmanager
    def _worn(self, body: Params) -> Iterator[None]:
        """A body in the live module, under the heads that trials are scored with."""
        with ExitStack() as stack:
            if self.refitting.when == "trials":
                stack.enter_context(self._refitter.fitted(body))
            else:
                self._evaluator.write_body(body)
            yield

    def _own_scores(self, folder: RunFolder) -> dict[str, float]:
        """The experts' scores on their validation splits, computed once in the life of a run."""
        noted = (folder.noted(_OWN) or {}) if self.trainer.is_global_zero else {}
        own: dict[str, float] = self.trainer.strategy.broadcast(noted)
        if not own:
            for name in self.ensemble.tasks:
                own |= self._evaluator.score(self.ensemble.bodies[name], "validation", [name])
            if self.trainer.is_global_zero:
                folder.note(_OWN, own)
        return own

    def _task_of(self, name: str) -> str:
        # a donor's information is about the target: its examples, under its head
        return name if name in self.ensemble.models else self.ensemble.tasks[0]

    def _fisher(self, name: str, body: Params) -> Params:
        values = self._evaluator.fisher(self._task_of(name), self.settings, body).values
        return {key: values[key] for key in self.ensemble.bodies[name]}

    def _gram(self, name: str, body: Params) -> Grams:
        return grams_of(self._evaluator, self.module, self._task_of(name), self.settings, body)

    def _statistics(self) -> Mapping[str, Mapping[str, Any]] | None:
        bodies = self.ensemble.bodies.items()
        if self.method.statistic == "gram":
            return {name: self._gram(name, body) for name, body in bodies}
        if self.method.statistic != "fisher" or self.ensemble.fishers:
            return self.ensemble.fishers
        return {name: self._fisher(name, body) for name, body in bodies}
