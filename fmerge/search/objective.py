"""What a search maximises: pure functions from the tasks' scores to numbers and their bounds.

Letters: sₜ is the merge's score on task t, eₜ the score of the task's own expert, wₜ a weight.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from fmerge.errors import UserError, known

Kind = Literal["mean", "retained", "worst", "worst_retained"]
Aim = Literal["mean", "retained", "worst", "worst_retained", "tasks"]
"""A kind of objective; ``tasks``: each task's score is an objective of its own."""

_ROUNDING = 1e-6
"""Scores come out of float32 metrics: a bound that is missed by less is met."""


@dataclass(frozen=True)
class Partial:
    """How much of a split a trial was scored on that was stopped early.

    Attributes:
        examples: How many examples of all tasks.
        of: How many there are.
        error: Standard error of the objective about that of the whole split.
        errors: The same of a task's score.
    """

    examples: int
    of: int
    error: float
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What one merge scored.

    Attributes:
        metrics: Score by task.
        objective: The number to maximise; None where there were no data to score on.
        error: Its standard error, in the objective's units; None where it is not known.
        errors: Standard error of a task's score, for the tasks where it is known.
        partial: How much was seen, where all these are estimates from a part of the split.
        objectives: The objectives by name, where there are several; ``objective`` is the first.
        objective_errors: Their standard errors, where they are known.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    objective: float | None = None
    error: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    partial: Partial | None = None
    objectives: Mapping[str, float] = field(default_factory=dict)
    objective_errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """One number from the tasks' scores, and what each score must at least be.

    ``mean`` is Σₜ wₜsₜ / Σₜ wₜ, ``retained`` is Σₜ wₜ(sₜ/eₜ) / Σₜ wₜ, ``worst`` is minₜ sₜ and
    ``worst_retained`` is minₜ sₜ/eₜ.

    Args:
        kind: Which of them.
        weights: wₜ by task, of the tasks that count; all count alike when left out.
        own: eₜ by task; needed by the shares.
        bounds: Least score by task, in the score's units.
        parts: The objectives of a search for several, by name, this one the first of them.
    """

    kind: Kind = "mean"
    weights: Mapping[str, float] | None = None
    own: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, "Objective"] = field(default_factory=dict)

    def of(self, metrics: Mapping[str, float], errors: Mapping[str, float]) -> Scores:
        """Scores a merge.

        Args:
            metrics: sₜ by task; none where there are no data.
            errors: Standard error of sₜ, for the tasks where it is known.

        Returns:
            The objective and its standard error: by the formula for independent tasks, with eₜ
            taken as exact; that of the worst task where it alone counts. The same of each part.
        """
        if not metrics:
            return Scores()
        parts = {name: part._alone(metrics, errors) for name, part in self.parts.items()}
        return replace(
            self._alone(metrics, errors),
            objectives={n: s.objective for n, s in parts.items() if s.objective is not None},
            objective_errors={n: s.error for n, s in parts.items() if s.error is not None},
        )

    def _alone(self, metrics: Mapping[str, float], errors: Mapping[str, float]) -> Scores:
        weights = dict.fromkeys(metrics, 1.0) if self.weights is None else self.weights
        # the experts' scores are taken as exact: only the merge's own errors enter
        shares = self.kind in {"retained", "worst_retained"}
        units = {task: self.own[task] if shares else 1.0 for task in weights}
        values = {task: metrics[task] / units[task] for task in weights}
        spread = {task: errors[task] / units[task] for task in weights if task in errors}
        complete = len(spread) == len(values)
        if self.kind in {"worst", "worst_retained"}:
            # not min() by value: it would pass over a NaN
            worst = next((t for t in values if math.isnan(values[t])), min(values, key=values.get))  # type: ignore[arg-type]
            return Scores(metrics, values[worst], spread.get(worst), errors)
        total = sum(weights.values())
        value = sum(weight * values[task] for task, weight in weights.items()) / total
        error = (
            math.hypot(*(w * spread[t] for t, w in weights.items())) / total if complete else None
        )
        return Scores(metrics, value, error, errors)

    def __str__(self) -> str:
        """Names it as a report does."""
        score = "share of the expert's score retained" if "retained" in self.kind else "score"
        counted = list(self.weights or ())
        if len(counted) == 1:
            task = f"task `{counted[0]}`"
            return task if score == "score" else f"the {score} on {task}"
        if self.kind.startswith("worst"):
            return f"the worst task's {score}"
        what = "the mean over tasks" if score == "score" else f"the mean {score}"
        if self.weights is None:
            return what
        return what + ", weights " + ", ".join(f"{t} {w:g}" for t, w in self.weights.items())


def shortfalls(metrics: Mapping[str, float], bounds: Mapping[str, float]) -> dict[str, float]:
    """Finds the tasks that a merge falls short on.

    Args:
        metrics: Score by task.
        bounds: Least score by task.

    Returns:
        By how much the score of a task is below its bound, for the tasks where it is by more
        than the rounding of a float32 score; infinite where it is not a number.
    """
    found = {}
    for task, bound in bounds.items():
        missing = bound - metrics.get(task, math.nan)
        if not missing <= _ROUNDING:
            found[task] = math.inf if math.isnan(missing) else missing
    return found


def binomial_error(share: float, examples: int) -> float:
    """Computes the standard error √(p(1 − p)/n) of a share of n examples.

    Args:
        share: p in [0, 1], such as an accuracy. Taken to be half an example away from 0 and 1,
            where the formula would call a small sample certain.
        examples: n.

    Returns:
        The standard error, in the units of p.
    """
    p = min(max(share, 0.5 / examples), 1 - 0.5 / examples)
    return math.sqrt(p * (1 - p) / examples)


def objectives_of(
    aims: Aim | Sequence[Aim],
    weights: Mapping[str, float] | None,
    tasks: Sequence[str],
    target: str | None = None,
) -> dict[str, Objective]:
    """Lists what is maximised.

    Args:
        aims: One objective, or several.
        weights: wₜ by task, if given; for those that are means.
        tasks: All tasks.
        target: The one task that counts alone, if there is one.

    Returns:
        The objectives by name, without experts' scores and bounds: the name of their kind, or of
        their task.

    Raises:
        UserError: If one is listed twice, none is, or weights or target do not fit them.
    """
    listed = [aims] if isinstance(aims, str) else list(aims)
    names = [name for aim in listed for name in (tasks if aim == "tasks" else [aim])]
    if not names:
        raise UserError("objective: lists nothing to maximise; give one or more, such as mean")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"objective: '{twice[0]}' would be two of the objectives; drop one")
    if target is not None and (len(names) > 1 or "tasks" in listed):
        raise UserError(
            f"objective: is {', '.join(listed)}, but with a target one task counts alone; leave "
            "the target out, or name one of mean, retained, worst and worst_retained"
        )
    means = [aim for aim in listed if aim in {"mean", "retained"}]
    kind: Aim = (means or listed)[0]
    counted = check_weights(weights, tasks, target, kind)
    found: dict[str, Objective] = {}
    for aim in listed:
        if aim == "tasks":
            found |= {task: Objective("mean", {task: 1.0}) for task in tasks}
        else:
            worst = aim.startswith("worst") and target is None
            found[aim] = Objective(aim, None if worst else counted)
    return found


def check_weights(
    weights: Mapping[str, float] | None, tasks: Sequence[str], target: str | None, kind: Aim
) -> Mapping[str, float] | None:
    """Checks which tasks count, and how much.

    Args:
        weights: wₜ by task, if given.
        tasks: All tasks.
        target: The one task that counts alone, if there is one.
        kind: The objective.

    Returns:
        wₜ by task that counts; None where all count alike.

    Raises:
        UserError: If a task is unknown or lacks its weight, or the weights do not fit.
    """
    if target is not None and target not in tasks:
        names = ", ".join(tasks)
        raise UserError(f"--optimizer.target: unknown task '{target}' as target; known: {names}")
    if weights is None:
        return None if target is None else {target: 1.0}
    if target is not None:
        raise UserError("weights: do not go with a target, which counts alone; leave one out")
    if kind not in {"mean", "retained"}:
        raise UserError(f"weights: mean nothing to '{kind}'; use mean or retained")
    if set(weights) != set(tasks):
        raise UserError(
            f"weights: are given for {known(weights)}, but the tasks are {known(tasks)}; give "
            "each task one"
        )
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise UserError(
            f"weights: are {dict(weights)}, but must be numbers from 0 that are not all 0"
        )
    return {task: float(weights[task]) for task in tasks if weights[task] > 0}


def check_keep(keep: float | Mapping[str, float] | None, tasks: Sequence[str]) -> dict[str, float]:
    """Checks which share of its expert's score each task must retain.

    Args:
        keep: One share for all tasks, or shares by task, if given.
        tasks: All tasks.

    Returns:
        Share by task that is bounded.

    Raises:
        UserError: If a task is unknown, or a share lies outside (0, 1].
    """
    shares = {} if keep is None else keep
    if not isinstance(shares, Mapping):
        shares = dict.fromkeys(tasks, shares)
    for task, share in shares.items():
        if task not in tasks:
            raise UserError(f"keep: unknown task '{task}'; known: {', '.join(tasks)}")
        if not 0 < share <= 1:
            raise UserError(f"keep: is {share} for '{task}', but must lie in (0, 1]; 0.97 is 97%")
    return {task: float(share) for task, share in shares.items()}


def check_own(own: Mapping[str, float], tasks: Sequence[str]) -> None:
    """Checks that shares of the experts' scores are defined.

    Args:
        own: eₜ by task.
        tasks: The tasks whose shares are needed.

    Raises:
        UserError: If an expert's score is not above zero.
    """
    for task in tasks:
        if not own[task] > 0:
            raise UserError(
                f"the expert of '{task}' scores {own[task]:g} on its validation split, of which "
                "no share can be retained; use the objective mean or worst, and no keep for it"
            )
