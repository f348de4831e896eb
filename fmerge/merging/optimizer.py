"""The search over coefficients as a Lightning callback."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from lightning.pytorch import Callback, Trainer

from fmerge import search as searches
from fmerge.errors import UserError, object_of
from fmerge.merging.learnable import LearnedGroups
from fmerge.merging.pool import Pool
from fmerge.merging.progress import progress
from fmerge.merging.search_checks import check_search, fixed
from fmerge.merging.trials import proposed, told
from fmerge.methods import MergeMethod
from fmerge.modules import Loss
from fmerge.search import AxSearch, Fixed, Search, SearchSpace, Trial
from fmerge.search.failures import check_failures
from fmerge.search.objective import Aim, Objective, check_keep, check_own, objectives_of
from fmerge.search.parameter_groups import Groups
from fmerge.search.space import Bounds, check_bounds


class MergeOptimizer(Callback):
    """Searches the merging coefficients: a trial is a merge, scored by validation.

    Args:
        search: Where the coefficients come from: Fixed, Grid, Dirichlet, RandomSearch, Sobol or
            AxSearch. AxSearch when left out; Fixed for methods without coefficients.
        target: Score this task alone; all tasks when left out.
        objective: What is maximised: mean: the mean of the tasks' scores; retained: the mean of
            the retained shares of their experts' scores; worst: the lowest score;
            worst_retained: the lowest share; tasks: each task's score, an objective of its own.
            Of several, such as [mean, worst], the search looks for the Pareto front, which is
            saved as pareto.json; the merge that is saved is the best by the first of them, and
            --build makes any other.
        weights: How much each task counts in mean or retained, by task; alike when left out.
        keep: Share of its expert's validation score that every task must retain, such as 0.97, or
            the shares by task. The best trial is then the best of those that do; where none
            does, the one that falls short by least.
        groups: What has coefficients of its own: whole: each expert has one; kind: one for its
            embeddings, attention, MLP and other tensors each; a number: one for each of so many
            equal slices of its depth; or {name of a group: regular expression that the names of
            its tensors match}. A method that looks at all tensors together looks at a group's:
            TIES trims, and FisherMerge and DFMerge normalize, within a group.
        bounds: The least and the greatest coefficient, such as [0, 1.5], or both by expert, such as
            {a: [-1, 0], b: [0, 1]}, where what a can do is to be unlearned; [0, 1] of those that
            are left out.
        search_patience: End the search after this many trials in a row that are not better than
            the best before them, the initial ones not counted; all trials are made when left out.
            A search also ends where every score that counts is 1, which no trial can beat.
        racing: Score a trial on growing parts of the validation split, and stop it where it is
            all but sure to fall behind the best one so far; for tasks scored by accuracy. What
            is saved was scored on the whole split, to the score it has without racing.
        batch: Propose so many trials at a time, before any of them is scored; when left out as
            many as are made in parallel, or 1.
        parallel: Make so many trials side by side, on Ray, each on a GPU or a share of the CPUs.
        ray_address: The Ray cluster to do so on, host:port or auto; this machine when left out.
        learn: After the search, learn coefficients by gradient from its best trial on: layers:
            one for each expert and numbered layer, and one for the rest; tensors: one for each
            tensor. Not at all when left out.
        loss: What is learned from training examples: experts: the probabilities that each task's
            expert gives them, without labels; labels; entropy: the merge's own certainty.
        steps: Steps of Adam, at most; a step takes one batch of each task.
        learning_rate: Adam's, of the coefficients.
        examples: Training examples of each task to learn from; all if null.
        patience: Stop after so many checks on the validation split, one every 10 steps, that
            bring nothing better.

    Examples:
        >>> import fmerge
        >>> fixed = fmerge.search.Fixed({"a": 0.3, "b": 0.7})
        >>> trainer = fmerge.Trainer(callbacks=[fmerge.MergeOptimizer(fixed)], logger=False)
        >>> report = trainer.merge(
        ...     fmerge.modules.TextClassifier(),
        ...     fmerge.data.MultiTask(),
        ...     experts={"a": "path/to/model_a", "b": "path/to/model_b"},
        ...     method=fmerge.methods.Isotropic(),
        ...     output="weighted",
        ... )
        Searching ...
        Trials: weighted/trials.jsonl
        Merged: weighted/merged
        Report: weighted/report.html
        >>> report.best.coefficients
        {'a': 0.3, 'b': 0.7}
    """

    default_search: ClassVar[type[Search]] = AxSearch

    def __init__(
        self,
        search: Search | None = None,
        target: str | None = None,
        objective: Aim | list[Aim] = "mean",
        weights: dict[str, float] | None = None,
        keep: float | dict[str, float] | None = None,
        groups: Groups = "whole",
        bounds: Bounds | None = None,
        search_patience: int | None = None,
        racing: bool = False,
        batch: int | None = None,
        parallel: int | None = None,
        ray_address: str | None = None,
        learn: LearnedGroups | None = None,
        loss: Loss = "experts",
        steps: int = 100,
        learning_rate: float = 0.01,
        examples: int | None = 512,
        patience: int = 5,
    ) -> None:
        self.search = None
        if search is not None:
            self.search = object_of("search", search, Search, searches)  # type: ignore[type-abstract]
        self.target = target
        self.objective: Aim | list[Aim] = objective
        self.weights = weights
        self.keep = keep
        self.groups = groups
        self.bounds = bounds
        self.search_patience = search_patience
        self.racing = racing
        self.batch = batch
        self.parallel = parallel
        self.ray_address = ray_address
        self.learn: LearnedGroups | None = learn
        self.loss: Loss = loss
        self.steps = steps
        self.learning_rate = learning_rate
        self.examples = examples
        self.patience = patience

    def check(
        self,
        method: MergeMethod,
        experts: Sequence[str],
        tasks: Sequence[str],
        scored: bool,
        given: dict[str, float] | None = None,
        portfolio: Search | None = None,
    ) -> Search:
        """Checks that method, search and objectives fit together, before any weights are read.

        Args:
            method: What is merged with.
            experts: All experts.
            tasks: The experts that have a task.
            scored: Whether there are data to score trials on.
            given: The coefficients, where they are given instead of a search.
            portfolio: The search over methods, where the method is a portfolio.

        Returns:
            The search that will be used.

        Raises:
            UserError: If the search does not fit the experts, the method or the data.
        """
        objective = self.goal(tasks)
        check_bounds(self.bounds, experts)
        search = portfolio or (self.search if given is None else fixed(given, self, method))
        if search is None:
            search = self.default_search() if method.uses_coefficients and scored else Fixed()
        check_search(self, search, method, scored)
        search.patience, search.batch = self.search_patience, self.batch or self.parallel or 1
        if self.racing and objective.parts:
            raise UserError(
                "--optimizer.racing: stops what cannot be best by one objective, but there are "
                f"{len(objective.parts)}; leave racing out, or name one --optimizer.objective"
            )
        # with groups the number of coefficients depends on the tensors; that there are no experts
        # is refused where they are read
        if self.groups == "whole" and experts:
            search.start(self.space(method, experts), objective)
        return search

    def space(
        self, method: MergeMethod, experts: Sequence[str], tensors: Sequence[str] = ()
    ) -> SearchSpace:
        """Makes the space of the search.

        Args:
            method: What is merged with.
            experts: All experts, in the order of the coefficients.
            tensors: The names of the body's tensors, in the order of the model.

        Returns:
            Experts × groups, and the method's numbers.
        """
        return SearchSpace.of(
            experts,
            tensors,
            self.groups,
            method.scale_invariant,
            bounds=self.bounds,
            numbers=method.numbers,
        )

    @property
    def needs_experts(self) -> bool:
        """Whether the experts' own validation scores are needed."""
        aims = [self.objective] if isinstance(self.objective, str) else self.objective
        return self.keep is not None or not {"retained", "worst_retained"}.isdisjoint(aims)

    def goal(self, tasks: Sequence[str], own: Mapping[str, float] | None = None) -> Objective:
        """Makes the objective.

        Args:
            tasks: The experts that have a task.
            own: The experts' own validation scores by task, where they are needed; None before
                they are known, which leaves bounds out.

        Returns:
            What is maximised, and what each task's score must at least be.
        """
        found = objectives_of(self.objective, self.weights, tasks, self.target)
        keep, bounds = check_keep(self.keep, tasks), {}
        if own is not None:
            for one in found.values():
                if one.kind in {"retained", "worst_retained"}:
                    check_own(own, list(one.weights or tasks))
            check_own(own, list(keep))
            bounds = {task: share * own[task] for task, share in keep.items()}
        parts = {name: replace(one, own=own or {}) for name, one in found.items()}
        first = next(iter(parts.values()))
        return replace(first, bounds=bounds, parts=parts if len(parts) > 1 else {})

    def optimize(
        self,
        trainer: Trainer,
        search: Search,
        pool: Pool,
        log: Callable[[dict[str, Any]], None],
        stop: Callable[[], int] = lambda: 0,
    ) -> Trial:
        """Runs every trial of the search.

        Under several processes the first one proposes and all of them assemble the same.

        Args:
            trainer: The Trainer, whose strategy broadcasts between processes.
            search: A started search.
            pool: Makes the trials.
            log: Takes a finished trial's record; called in the first process only.
            stop: Tells, on all processes, the number of the signal that asked to stop, or 0.

        Returns:
            The best trial.

        Raises:
            SystemExit: If it is asked to stop, once the running trials are logged.
            UserError: If no trial succeeded, or the first ones all failed alike.
        """
        begun = len(search.history)
        with progress(trainer, search) as show:
            while len(search.history) < search.budget:
                if number := stop():
                    raise SystemExit(128 + number)
                batch = proposed(trainer, search)
                if not batch:
                    break
                for trial in pool.run(batch, stop):
                    told(trainer, search, trial)
                    if trainer.is_global_zero:
                        log(trial.as_record())
                    show()
                    check_failures(search, begun)
        try:
            return search.best()
        except ValueError as error:
            reason = search.history[0].reason
            raise UserError(f"{error}; the first failed with: {reason}") from error
