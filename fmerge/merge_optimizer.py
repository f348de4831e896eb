"""The search over coefficients as a Lightning callback."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fmerge.errors import UserError
from fmerge.methods import MergeMethod
from fmerge.params import Params, check_finite
from fmerge.search import AxSearch, Fixed, Search, Trial

Score = Callable[[Params], Mapping[str, float]]
"""From merged body tensors to the score of each task."""


class Merger:
    """Assembles a merge for given coefficients.

    Args:
        method: The formula.
        base: The base's body θ₀, or None.
        experts: Bodies θₘ by name.
        fisher_of: From an expert's name and a body to that task's diagonal Fisher there;
            called only for methods that move the Fisher with the coefficients.
        fishers: Diagonal Fishers Fₘ at the experts, by name, or None.
    """

    def __init__(
        self,
        method: MergeMethod,
        base: Params | None,
        experts: Mapping[str, Params],
        fisher_of: Callable[[str, Params], Params],
        fishers: Mapping[str, Params] | None = None,
    ) -> None:
        self.method = method
        self.base = base
        self.experts = experts
        self.fisher_of = fisher_of
        self.fishers = fishers

    def assemble(self, coefficients: Mapping[str, float]) -> Params:
        """Computes the merged body.

        Args:
            coefficients: λ by expert.

        Returns:
            The merged tensors.

        Raises:
            ValueError: If the method cannot merge with these coefficients.
            UserError: If the merged tensors are not finite.
        """
        fishers = self.fishers
        if self.method.fisher_at == "scaled":
            fishers = {
                name: self.fisher_of(name, self._scaled(name, coefficients[name]))
                for name in self.experts
            }
        merged = self.method.merge(
            self.base,
            list(self.experts.values()),
            [coefficients[name] for name in self.experts],
            None if fishers is None else [fishers[name] for name in self.experts],
        )
        check_finite(merged, f"{type(self.method).__name__} at {dict(coefficients)}")
        return merged

    def _scaled(self, name: str, coefficient: float) -> Params:
        """θ₀ + λₘτₘ, where DF-Merge takes the Fisher."""
        if self.base is None:
            raise ValueError(f"{type(self.method).__name__} needs the base model")
        expert = self.experts[name]
        return {key: torch.lerp(base, expert[key], coefficient) for key, base in self.base.items()}


class MergeOptimizer(Callback):
    """Searches the merging coefficients: a trial is a merge, scored by validation.

    Args:
        search: Where the coefficients come from: Fixed, Grid, Dirichlet or AxSearch. AxSearch
            when left out; Fixed for methods without coefficients.
        target: Score this task alone; the mean over all tasks when left out.
    """

    def __init__(self, search: Search | None = None, target: str | None = None) -> None:
        self.search = search
        self.target = target

    def prepare(self, names: list[str], method: MergeMethod, scored: bool) -> Search:
        """Starts the search, before any long work.

        Args:
            names: The experts.
            method: What is merged with.
            scored: Whether there are data to score trials on.

        Returns:
            The search that will be used.

        Raises:
            UserError: If the search does not fit the experts, the method or the data.
        """
        if self.target is not None and self.target not in names:
            raise UserError(f"unknown task '{self.target}' as target; known: {', '.join(names)}")
        search = self.search
        if search is None:
            search = AxSearch() if method.uses_coefficients and scored else Fixed()
        if not method.uses_coefficients and not isinstance(search, Fixed):
            raise UserError(
                f"{type(search).__name__}: {type(method).__name__} has no coefficients to search; "
                "name another --method, or leave --optimizer.search out"
            )
        if not scored and not isinstance(search, Fixed):
            raise UserError(
                f"{type(search).__name__}: needs data to score its trials on; give --data, or "
                "fix the coefficients with --optimizer.search Fixed"
            )
        search.start(names)
        return search

    def optimize(
        self,
        trainer: Trainer,
        search: Search,
        merger: Merger,
        score: Score,
        log: Callable[[dict[str, Any]], None],
        stop: Callable[[], int] = lambda: 0,
    ) -> Trial:
        """Runs every trial of the search.

        Under several processes the first one proposes and all of them assemble the same.

        Args:
            trainer: The trainer, whose strategy tells the processes apart.
            search: A started search.
            merger: Assembles the weights of a trial.
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
                trial = self._try(len(search.history), coefficients, merger, score)
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
        self, index: int, coefficients: Mapping[str, float], merger: Merger, score: Score
    ) -> Trial:
        try:
            metrics = score(merger.assemble(coefficients))
        except (ValueError, UserError, torch.OutOfMemoryError) as error:
            return Trial(index, coefficients, status="failed", reason=str(error))
        if not metrics:
            return Trial(index, coefficients, reason="built without data to score it on")
        counted = [metrics[self.target]] if self.target else list(metrics.values())
        objective = sum(counted) / len(counted)
        if not math.isfinite(objective):
            reason = f"the objective is {objective}"
            return Trial(index, coefficients, metrics=metrics, status="failed", reason=reason)
        return Trial(index, coefficients, objective, metrics)


def _best_so_far(search: Search) -> str:
    scores = [trial.objective for trial in search.history if trial.objective is not None]
    return f"best {max(scores):.4f}" if scores else "no score yet"
