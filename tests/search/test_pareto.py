"""Pareto fronts: by hand, by their definition, and against BoTorch's."""

import torch
from botorch.utils.multi_objective.pareto import is_non_dominated
from hypothesis import given, settings
from hypothesis import strategies as st

from fmerge.search.pareto import non_dominated


def test_fronts_by_hand():
    assert non_dominated([]) == []
    assert non_dominated([(0.3, 0.1)]) == [0]
    # a staircase: (3, 1), (2, 2) and (1, 3); (2, 1) and (1, 2) lie below (2, 2)
    assert non_dominated([(2, 1), (3, 1), (2, 2), (1, 2), (1, 3)]) == [1, 2, 4]
    # as good in one objective and worse in the other
    assert non_dominated([(0.5, 0.5), (0.5, 0.6)]) == [1]
    assert non_dominated([(0.5, 0.6), (0.5, 0.5)]) == [0]
    # of equals the first; those below it go as well
    assert non_dominated([(0, 1), (1, 0), (0, 1), (1, 0), (0, 0)]) == [0, 1]
    # of three objectives one is enough to stay
    assert non_dominated([(1, 1, 0), (0, 0, 1), (1, 0, 0)]) == [0, 1]


# few values, so that ties are many
POINTS = st.integers(2, 4).flatmap(
    lambda m: st.lists(st.tuples(*[st.integers(0, 4).map(lambda v: v / 4)] * m), max_size=14)
)


@given(POINTS)
@settings(max_examples=200, deadline=None)
def test_fronts_by_definition(points):
    def dominates(a, b):
        pairs = list(zip(a, b, strict=True))
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    front = non_dominated(points)
    kept = [points[i] for i in front]
    assert len(set(kept)) == len(kept) and front == sorted(front)
    for i, point in enumerate(points):
        beaten = any(dominates(other, point) for other in points)
        assert (point in kept) == (not beaten)
        if point in kept:  # and nothing that was left out is needed to say so
            assert points.index(point) in front
        else:
            assert any(dominates(one, point) for one in kept), i


@given(POINTS.filter(len))
@settings(max_examples=100, deadline=None)
def test_fronts_against_botorch(points):
    found = is_non_dominated(torch.tensor(points, dtype=torch.float64), deduplicate=True)
    front = non_dominated(points)
    assert {points[i] for i in front} == {points[i] for i in found.nonzero().flatten().tolist()}
    assert len(front) == int(found.sum())
