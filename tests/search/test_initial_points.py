"""The points that are tried first, and the coordinate search that comes last."""

import pytest

from fmerge.search import Dirichlet, Fixed, RandomSearch, SearchSpace, Sobol, Trial
from fmerge.search.coordinate_search import coordinate_point
from fmerge.search.initial_points import initial_points

GROUPS = {"x": (), "y": ()}


def values(points):
    return [tuple(point.values()) for point in points]


def test_starts_by_value():
    third = 1 / 3
    assert values(initial_points(SearchSpace(["a", "b", "c"]))) == [
        (third, third, third), (0.3, 0.3, 0.3), (0.5, 0.5, 0.5), (1, 1, 1),
        (1, 0, 0), (0, 1, 0), (0, 0, 1),
    ]  # fmt: skip


def test_starts_that_are_the_same_merge_are_dropped():
    # 1/M of two experts is 0.5
    both = values(initial_points(SearchSpace(["a", "b"])))
    assert both == [(0.5, 0.5), (0.3, 0.3), (1, 1), (1, 0), (0, 1)]
    ratios = values(initial_points(SearchSpace(["a", "b"], scale_invariant=True)))
    assert ratios == [(0.5, 0.5), (1, 0), (0, 1)]


def test_starts_of_groups_are_alike_in_all_groups():
    points = initial_points(SearchSpace(["a", "b"], GROUPS, scale_invariant=True))
    assert points[0] == {"a/x": 0.5, "a/y": 0.5, "b/x": 0.5, "b/y": 0.5}
    assert points[1] == {"a/x": 1, "a/y": 1, "b/x": 0, "b/y": 0}


def polish(score, centre, steps):
    history = [Trial(0, {"a": 0.9, "b": 0.9}, -9.0), Trial(1, centre, score(centre))]
    points = []
    for index in range(2, 2 + steps):
        point = coordinate_point(history, 2, rank, UNIT_BOX)
        points.append(tuple(round(value, 6) for value in point.values()))
        result = score(point)
        status = "failed" if result is None else "ok"
        history.append(Trial(index, point, result, status=status))
    return points


UNIT_BOX = {"a": (0.0, 1.0), "b": (0.0, 1.0)}


def rank(trial):
    return 0.0, trial.objective


def test_a_compass_search_by_hand():
    """The top is at (0.64, 0.2): up in a, never in b, then by half a step."""

    def score(point):
        return -abs(point["a"] - 0.64) - abs(point["b"] - 0.2)

    assert polish(score, {"a": 0.5, "b": 0.2}, 9) == [
        (0.6, 0.2),  # better: go on in this direction
        (0.7, 0.2),  # too far
        (0.6, 0.3),  # back to (0.5, 0.2) would be a repetition
        (0.6, 0.1),
        (0.65, 0.2),  # half the step
        (0.65, 0.25),
        (0.65, 0.15),
        (0.675, 0.2),  # (0.7, 0.2) and (0.6, 0.2) are known
        (0.625, 0.2),
    ]


def test_a_compass_search_keeps_to_the_box_and_passes_over_failures():
    points = polish(lambda point: None if point["a"] < 1 else 0.5, {"a": 1.0, "b": 0.05}, 4)
    assert points == [(0.9, 0.05), (1, 0.15), (1, 0), (0.95, 0.05)]


def test_a_compass_search_in_another_box():
    """Steps are shares of a range: 0.1 · 2 in a, 0.1 · 1 in b, up to the edges."""
    centre = {"a": -0.9, "b": 0.5}
    history, seen = [Trial(0, centre, 1.0)], []
    while len(seen) < 4:
        seen.append(coordinate_point(history, 1, rank, {"a": (-1.0, 1.0), "b": (0.0, 1.0)}))
        history.append(Trial(len(history), seen[-1], 0.0))
    rounded = [tuple(round(x, 9) for x in point) for point in values(seen)]
    assert rounded == [(-0.7, 0.5), (-1.0, 0.5), (-0.9, 0.6), (-0.9, 0.4)]


def test_a_compass_search_ends_when_steps_no_longer_matter():
    centre = {"a": 0.5}
    history = [Trial(0, centre, 1.0)]
    while (point := coordinate_point(history, 1, rank, {"a": (0.0, 1.0)})) is not None:
        history.append(Trial(len(history), point, 0.0))
    # two points for each of the steps 0.1, 0.05, … above 1e-4
    assert len(history) == 1 + 2 * 10


@pytest.mark.parametrize("make", [RandomSearch, Sobol])
def test_space_filling_searches(make):
    def points(names="abc", **options):
        search = make(**options)
        search.start(SearchSpace(names))
        while not search.finished:
            search.tell(Trial(len(search.history), search.ask(), 0.5))
        return values(t.coefficients for t in search.history)

    drawn = points(trials=512, seed=3)
    assert len(set(drawn)) == 512 and all(0 <= v <= 1 for point in drawn for v in point)
    means = [sum(column) / 512 for column in zip(*drawn, strict=True)]
    # uniform: standard deviation 0.29, of a mean of 512 0.013
    assert all(abs(mean - 0.5) < 0.05 for mean in means)
    assert points(trials=5, seed=3) == drawn[:5] != points(trials=5, seed=4)
    halves = [sum(p[0] < 0.5 for p in drawn[:16]), sum(p[1] < 0.5 for p in drawn[:16])]
    assert make is RandomSearch or halves == [8, 8]


@pytest.mark.parametrize("make", [RandomSearch, Sobol])
def test_space_filling_searches_fill_the_bounds(make):
    def points(bounds):
        search = make(trials=4, seed=3)
        search.start(SearchSpace.of(["a", "b"], [], bounds=bounds))
        while not search.finished:
            search.tell(Trial(len(search.history), search.ask(), 0.5))
        return values(t.coefficients for t in search.history)

    unit = points(None)
    assert points([0, 1]) == unit
    assert points([0, 1.5]) == [(1.5 * a, 1.5 * b) for a, b in unit]
    assert points({"b": [-1, 1]}) == [(a, -1 + 2 * b) for a, b in unit]


def test_starts_within_bounds():
    def starts(bounds):
        return values(initial_points(SearchSpace.of(["a", "b"], [], bounds=bounds)))

    assert starts([0, 1.5]) == [(0.5, 0.5), (0.3, 0.3), (1, 1), (1, 0), (0, 1)]
    # a is to be unlearned: subtracted by as much as b is added
    assert starts({"a": [-0.6, 0]}) == [(-0.5, 0.5), (-0.3, 0.3), (-0.6, 1), (-0.6, 0), (0, 1)]
    # at the nearest bound, and never the base alone
    assert starts({"a": [0.4, 1], "b": [-1, 0]}) == [
        (0.5, -0.5), (0.4, -0.3), (1, -1), (1, 0), (0.4, -1),
    ]  # fmt: skip


def test_fixed_coefficients_by_expert_and_by_group():
    search = Fixed({"a": 0.3, "a/y": 0.9, "b/x": 0.1, "b/y": 0.2})
    search.start(SearchSpace(["a", "b"], GROUPS))
    assert search.ask() == {"a/x": 0.3, "a/y": 0.9, "b/x": 0.1, "b/y": 0.2}
    default = Fixed()
    default.start(SearchSpace(["a", "b"], GROUPS))
    assert set(default.ask().values()) == {0.5}


def test_the_coefficients_of_each_group_sum_to_one():
    search = Dirichlet(draws=2, seed=1)
    search.start(SearchSpace(["a", "b", "c"], GROUPS))
    point = search.ask()
    assert list(point) == ["a/x", "a/y", "b/x", "b/y", "c/x", "c/y"]
    for group in "xy":
        assert sum(point[f"{expert}/{group}"] for expert in "abc") == pytest.approx(1)
    assert point["a/x"] != point["a/y"]
