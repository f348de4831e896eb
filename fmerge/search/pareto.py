"""Pareto fronts: a pure function."""

from collections.abc import Sequence


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


def _at_least(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))
