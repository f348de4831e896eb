"""The search over coefficients as a Lightning callback."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fmerge.errors import UserError
from fmerge.merging.assembler import Assembler
from fmerge.methods import MergeMethod
from fmerge.params import Params
from fmerge.search import AxSearch, Fixed, Search, Trial
from fmerge.search.objective import Aim, Objective, Scores, check_keep, check_own, objectives_of
from fmerge.search.parameter_groups import Groups, partition

Score = Callable[[Params], Scores]
"""From merged body tensors to what they scored."""


class MergeOptimizer(Callback):
    """Searches the merging coefficients: a trial is a merge, scored by validation.

    Args:
        search: Where the coefficients come from: Fixed, Grid, Dirichlet, RandomSearch, Sobol or
            AxSearch. AxSearch when left out; Fixed for methods without coefficients.
        target: Score this task alone; all tasks when left out.
        objective: What is maximised: mean: the mean of the tasks' scores; retained: the mean of
            the shares of their experts' scores that they keep; worst: the lowest score;
            worst_retained: the lowest share; tasks: each task's score, an objective of its own.
            Of several, such as [mean, worst], the search looks for the Pareto front, which is
            saved as pareto.json; the merge that is kept is the best by the first of them, and
            --build makes any other.
        weights: How much each task counts in mean or retained, by task; alike when left out.
        keep: Share of its expert's validation score that every task must keep, such as 0.97, or
            the shares by task. The best trial is then the best of those that do; where none
            does, the one that falls short by least.
        groups: What has coefficients of its own: whole: each expert has one; kind: one for its
            embeddings, attention, MLP and other tensors each; a number: one for each of so many
            equal slices of its depth; or {name of a group: regular expression that the names of
            its tensors match}. A method that looks at all tensors together looks at a group's:
            TIES trims, and FisherMerge and DFMerge normalize, within a group.
        racing: Score a trial on growing parts of the validation split, and stop it where it is
            all but sure to fall behind the best one so far; for tasks scored by accuracy. What
            is kept was scored on the whole split, to the score it has without racing.
    """

    def __init__(
        self,
        search: Search | None = None,
        target: str | None = None,
        objective: Aim | list[Aim] = "mean",
        weights: dict[str, float] | None = None,
        keep: float | dict[str, float] | None = None,
        groups: Groups = "whole",
        racing: bool = False,
    ) -> None:
        self.search = search
        self.target = target
        self.objective: Aim | list[Aim] = objective
        self.weights = weights
        self.keep = keep
        self.groups = groups
        self.racing = racing
        self.parts: dict[str, list[str]] | None = None
        self._names: list[str] = []
        self._tasks: list[str] = []

    def prepare(
        self,
        names: list[str],
        method: MergeMethod,
        scored: bool,
        tasks: Sequence[str] | None = None,
    ) -> Search:
        """Starts the search, before any long work.

        Args:
            names: The experts.
            method: What is merged with.
            scored: Whether there are data to score trials on.
            tasks: The experts that have a task: all when left out.

        Returns:
            The search that will be used; ``divide`` starts it once more where tensors are grouped.

        Raises:
            UserError: If the search does not fit the experts, the method or the data.
        """
        self._names, self._tasks = names, list(names if tasks is None else tasks)
        objectives = objectives_of(self.objective, self.weights, self._tasks, self.target)
        check_keep(self.keep, self._tasks)
        search = self.search
        if search is None:
            search = AxSearch() if method.uses_coefficients and scored else Fixed()
        if not method.uses_coefficients and not isinstance(search, Fixed):
            raise UserError(
                f"{type(search).__name__}: {type(method).__name__} has no coefficients to search; "
                "name another --method, or leave --optimizer.search out"
            )
        if not method.uses_coefficients and self.groups != "whole":
            raise UserError(
                f"--optimizer.groups: {type(method).__name__} has no coefficients to divide"
            )
        if not scored and not isinstance(search, Fixed):
            raise UserError(
                f"{type(search).__name__}: needs data to score its trials on; give --data, or "
                "fix the coefficients with --optimizer.search Fixed"
            )
        if self.racing and len(objectives) > 1:
            raise UserError(
                "--optimizer.racing: stops what cannot be best by one objective, but there are "
                f"{len(objectives)}; leave racing out, or name one --optimizer.objective"
            )
        if not scored and self.racing:
            raise UserError("--optimizer.racing: needs data to score on; give --data")
        if not scored and (self.needs_experts or self.weights or self.objective != "mean"):
            raise UserError(
                "--optimizer: objective, weights and keep need data to score on; give --data"
            )
        search.aim(list(objectives) if len(objectives) > 1 else [])
        self.parts = None
        if self.groups == "whole":
            search.start(names, scale_invariant=method.scale_invariant)
        return search

    def divide(self, search: Search, method: MergeMethod, tensors: Sequence[str]) -> None:
        """Groups the tensors and starts the search over the groups' coefficients.

        Args:
            search: What ``prepare`` returned.
            method: What is merged with.
            tensors: The names of the body's tensors, in the order of the model.
        """
        if self.groups != "whole":
            self.parts = partition(tensors, self.groups)
            search.start(self._names, list(self.parts), method.scale_invariant)

    @property
    def needs_experts(self) -> bool:
        """Whether the experts' own validation scores are needed."""
        aims = [self.objective] if isinstance(self.objective, str) else self.objective
        return self.keep is not None or not {"retained", "worst_retained"}.isdisjoint(aims)

    def goal(self, own: Mapping[str, float]) -> Objective:
        """Settles what is maximised and what is bounded.

        Args:
            own: The experts' own validation scores by task, where they are needed.

        Returns:
            The objective.
        """
        found = objectives_of(self.objective, self.weights, self._tasks, self.target)
        keep = check_keep(self.keep, self._tasks)
        for one in found.values():
            if one.kind in {"retained", "worst_retained"}:
                check_own(own, list(one.weights or self._tasks))
        check_own(own, list(keep))
        bounds = {task: share * own[task] for task, share in keep.items()}
        parts = {name: replace(one, own=own) for name, one in found.items()}
        first = next(iter(parts.values()))
        return replace(first, bounds=bounds, parts=parts if len(parts) > 1 else {})

    def optimize(
        self,
        trainer: Trainer,
        search: Search,
        assembler: Assembler,
        score: Score,
        log: Callable[[dict[str, Any]], None],
        stop: Callable[[], int] = lambda: 0,
    ) -> Trial:
        """Runs every trial of the search.

        Under several processes the first one proposes and all of them assemble the same.

        Args:
            trainer: The trainer, whose strategy tells the processes apart.
            search: A started search.
            assembler: Assembles the weights of a trial.
            score: Scores them, on all processes.
            log: Takes a finished trial's record; called in the first process only.
            stop: Tells, on all processes, the number of the signal that asked to stop, or 0.

        Returns:
            The best trial.

        Raises:
            SystemExit: If it is asked to stop, once the running trial is logged.
            UserError: If no trial succeeded.
        """
        columns = (
            TextColumn("Searching"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, disable=not trainer.is_global_zero) as progress:
            bar = progress.add_task("", total=search.budget)
            while not search.finished:
                if number := stop():
                    raise SystemExit(128 + number)
                proposal = search.ask() if trainer.is_global_zero else {}
                coefficients = trainer.strategy.broadcast(proposal)
                trial = self._try(len(search.history), coefficients, assembler, score)
                if trainer.is_global_zero:
                    search.tell(trial)
                    log(trial.as_record())
                else:
                    search.history.append(trial)
                progress.update(bar, advance=1, description=_best_so_far(search))
        try:
            return search.best()
        except ValueError as error:
            raise UserError(
                f"{error}; the first failed with: {search.history[0].reason}"
            ) from error

    def _try(
        self, index: int, coefficients: Mapping[str, float], assembler: Assembler, score: Score
    ) -> Trial:
        try:
            scores = score(assembler.assemble(coefficients))
        except (ValueError, UserError, MemoryError, torch.OutOfMemoryError) as error:
            return Trial(index, coefficients, status="failed", reason=str(error))
        metrics, objective = scores.metrics, scores.objective
        if objective is None:
            return Trial(index, coefficients, reason="built without data to score it on")
        for value in (objective, *scores.objectives.values()):
            if not math.isfinite(value):
                reason = f"the objective is {value}"
                return Trial(index, coefficients, metrics=metrics, status="failed", reason=reason)
        return Trial(
            index,
            coefficients,
            objective,
            metrics,
            "ok" if scores.partial is None else "stopped",
            error=scores.error,
            errors=scores.errors,
            partial=scores.partial,
            objectives=scores.objectives,
            objective_errors=scores.objective_errors,
        )


def _best_so_far(search: Search) -> str:
    if not any(trial.status == "ok" and trial.objective is not None for trial in search.history):
        return "no score yet"
    best = search.best()
    short = ", short of the bounds" if search.rank(best)[0] else ""
    return f"best {best.objective:.4f}{short}"
