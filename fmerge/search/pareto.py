"""Pareto fronts: pure functions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmerge.search.trial import Trial


def non_dominated(points: Sequence[Sequence[float]]) -> list[int]:
    """Finds the points that no other point dominates.

    a dominates b if aᵢ ≥ bᵢ in every objective i and aᵢ > bᵢ in one.

    Args:
        points: The objectives of each point, finite, higher for better.

    Returns:
        Positions of the non-dominated points, in order; of equal points that of the first.
    """
    found = []
    for i, point in enumerate(points):
        dominated = any(
            _at_least(other, point) and (j < i or tuple(other) != tuple(point))
            for j, other in enumerate(points)
            if j != i
        )
        if not dominated:
            found.append(i)
    return found


def non_dominated_trials(trials: Sequence["Trial"]) -> list["Trial"]:
    """Finds the trials whose scores by task no other trial dominates.

    Args:
        trials: Any trials.

    Returns:
        Those that were scored on as many tasks as any, the first of several with the same scores.
    """
    most = max((len(trial.metrics) for trial in trials), default=0)
    scored = [t for t in trials if t.status == "ok" and len(t.metrics) == most > 0]
    found = non_dominated([tuple(trial.metrics.values()) for trial in scored])
    return [scored[i] for i in found]


def _at_least(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))
