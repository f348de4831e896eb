"""Coordinate search: from the best point along one coefficient at a time, with halving steps."""

from collections.abc import Callable, Mapping, Sequence

from fmerge.search.space import Range
from fmerge.search.trial import Trial

_FIRST = 0.1
_LAST = 1e-4
"""Steps of a number, from the first to where merges no longer differ, as shares of its box."""

Point = Mapping[str, float]


def coordinate_point(
    history: Sequence[Trial],
    begin: int,
    rank: Callable[[Trial], tuple[float, ...]],
    box: Mapping[str, Range],
    point_of: Callable[[Point], Point] = dict,
) -> dict[str, float] | None:
    """Finds the next point; it depends on the finished trials alone.

    From the best trial it goes a step up and a step down in each number of a point in turn. A point
    that is better becomes the centre at once, and the same direction is tried from there. When
    all directions have failed, the step is halved. Points outside the box are brought to its
    edge; no point is tried twice.

    Args:
        history: The finished trials, one of which succeeded before ``begin``.
        begin: The first trial of the coordinate search.
        rank: Higher for better trials that succeeded.
        box: The bounds of each number of a point.
        point_of: From coefficients to the point; the coefficients themselves when left out.

    Returns:
        A point by name; None when the step has become too small to matter.
    """
    centre = max(
        (t for t in history[:begin] if t.status == "ok"), key=lambda t: (rank(t), -t.index)
    )
    tried = {_key(point_of(trial.coefficients)) for trial in history[:begin]}
    names, outcomes = list(box), iter(history[begin:])
    step, direction, failures = _FIRST, 0, 0
    while step > _LAST:
        name, sign = names[direction // 2], 1 - 2 * (direction % 2)
        (low, high), here = box[name], point_of(centre.coefficients)
        moved = min(high, max(low, here[name] + sign * step * (high - low)))
        point = {**here, name: moved}
        if _key(point) not in tried:
            trial = next(outcomes, None)
            if trial is None:
                return point
            tried.add(_key(point_of(trial.coefficients)))
            if trial.status == "ok" and rank(trial) > rank(centre):
                centre, failures = trial, 0
                continue
        direction, failures = (direction + 1) % (2 * len(names)), failures + 1
        if failures == 2 * len(names):
            step, failures = step / 2, 0
    return None


def _key(point: Point) -> tuple[float, ...]:
    # sums of steps differ in their last digits
    return tuple(round(value, 9) for value in point.values())
