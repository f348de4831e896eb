"""The points that a search tries first."""

from fmerge.search.space import UNIT, Range, SearchSpace

_SCALES = (0.3, 0.5, 1.0)
"""λ of all experts: what task arithmetic is tried at by hand, and whole task vectors."""


def initial_points(space: SearchSpace, balanced: bool = False) -> list[dict[str, float]]:
    """Lists the points that are tried before any model, the most promising first.

    Args:
        space: M experts, and groups whose coefficients are alike in all these points. Where it
            is scale-invariant, multiples of a point are the same merge.
        balanced: Whether the weights that balance the experts' statistics come second, if there
            are any.

    Returns:
        λ by the names of the coefficients, no merge twice: 1/M each, which is the plain average;
        0.3, 0.5 and 1 each; and each expert alone, at 1. An expert whose coefficients are at most
        0 is subtracted by as much; what lies outside the bounds is brought to the nearest of them.
    """
    experts, count = space.experts, len(space.experts)
    points = [[value] * count for value in (1 / count, *_SCALES)]
    points += [[float(other == expert) for other in experts] for expert in experts]
    bounds = [space.bounds.get(expert, UNIT) for expert in experts]
    signed = [[_within(x, one) for x, one in zip(p, bounds, strict=True)] for p in points]
    distinct: dict[tuple[float, ...], list[float]] = {}
    for point in signed:
        if not any(point):  # the base
            continue
        largest = max(point) if space.scale_invariant else 1.0
        distinct.setdefault(tuple(value / largest for value in point), point)
    both = (dict(zip(experts, point, strict=True)) for point in distinct.values())
    found = [space.spread(point) | space.own for point in both]
    if balanced and space.balanced:
        found.insert(1, dict(space.balanced))
    return found


def _within(value: float, bounds: Range) -> float:
    low, high = bounds
    return min(high, max(low, -value if high <= 0 else value)) + 0.0  # no -0.0
