"""The points that any user would try first."""

from collections.abc import Sequence

from fmerge.search.parameter_groups import coefficient_names

_SCALES = (0.3, 0.5, 1.0)
"""λ of all experts: what task arithmetic is tried at by hand, and whole task vectors."""


def initial_points(
    experts: Sequence[str], groups: Sequence[str], scale_invariant: bool
) -> list[dict[str, float]]:
    """Lists the points worth a trial whatever a model says, the most promising first.

    Args:
        experts: The M experts.
        groups: The groups of tensors, whose coefficients are alike in all these points.
        scale_invariant: Whether multiples of a point are the same merge.

    Returns:
        λ by the names of the coefficients, no merge twice: 1/M each, which is the plain average;
        0.3, 0.5 and 1 each; and each expert alone, at 1.
    """
    count = len(experts)
    points = [[value] * count for value in (1 / count, *_SCALES)]
    points += [[float(other == expert) for other in experts] for expert in experts]
    distinct: dict[tuple[float, ...], list[float]] = {}
    for point in points:
        largest = max(point) if scale_invariant else 1.0
        distinct.setdefault(tuple(value / largest for value in point), point)
    return [
        {
            name: value
            for expert, value in zip(experts, point, strict=True)
            for name in coefficient_names([expert], groups)
        }
        for point in distinct.values()
    ]
