"""Log-ratios of coefficients: by hand, back and forth, and how they are searched."""

import math

import pytest
import torch

from fmerge.errors import UserError
from fmerge.search import AxSearch, SearchSpace, Trial
from fmerge.search.charts import REACH, Linear, LogRatios
from fmerge.search.initial_points import initial_points

GROUPS = {"x": (), "y": ()}


def space(experts, groups=None, **balanced):
    options = {} if groups is None else {"groups": groups}
    return SearchSpace(experts, scale_invariant=True, balanced=balanced, **options)


def test_two_experts_have_one_ratio():
    chart = LogRatios(space(["a", "b"]))
    reach = REACH / math.sqrt(2)
    assert list(chart.box) == ["ratio1"]
    assert chart.box["ratio1"] == pytest.approx((-reach, reach), abs=1e-6)
    # (log 1 − log 0.25) / √2
    point = chart.point({"a": 0.8, "b": 0.2})
    assert point == pytest.approx({"ratio1": math.log(4) / math.sqrt(2)}, abs=1e-6)
    assert chart.point({"a": 0.4, "b": 0.1}) == point
    assert chart.coefficients(point) == pytest.approx({"a": 1.0, "b": 0.25}, rel=1e-5)
    # an expert alone is at the edge, which weighs the other a thousandth
    assert chart.point({"a": 0.0, "b": 1.0}) == {"ratio1": chart.box["ratio1"][0]}
    edge = chart.coefficients({"ratio1": chart.box["ratio1"][1]})
    assert edge == pytest.approx({"a": 1.0, "b": 0.001}, rel=1e-5)


def test_distances_are_those_of_the_logarithms():
    """The chart is an isometry of log λ up to its mean, for each group by itself."""
    chart = LogRatios(space(["a", "b", "c", "d"], GROUPS))
    generator = torch.Generator().manual_seed(1)
    logs = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)  # points, experts, groups
    names = chart.space.names
    points = [dict(zip(names, one.exp().flatten().tolist(), strict=True)) for one in logs]
    first, second = (torch.tensor(list(chart.point(one).values())) for one in points)
    assert len(first) == 6
    centred = logs - logs.mean(dim=1, keepdim=True)
    expected = (centred[0] - centred[1]).norm()
    torch.testing.assert_close((first - second).double().norm(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_points_come_back_to_the_last_digit(count):
    experts = [f"e{i}" for i in range(count)]
    balanced = {"e0/x": 1e-6, "e1/y": 1e-4}
    chart = LogRatios(space(experts, GROUPS, **balanced))
    generator = torch.Generator().manual_seed(count)
    for _ in range(200):
        draws = torch.rand(len(chart.box), generator=generator, dtype=torch.float64).tolist()
        point = {
            name: round(low + (high - low) * draw, 6)
            for draw, (name, (low, high)) in zip(draws, chart.box.items(), strict=True)
        }
        coefficients = chart.coefficients(point)
        assert chart.point(coefficients) == point and chart.made(coefficients)
        assert list(coefficients) == list(chart.space.names)


def test_the_box_holds_balanced_weights_with_room_on_both_sides():
    """One Fisher outweighs the other a million times."""
    chart = LogRatios(space(["a", "b"], a=1e-6, b=1.0))
    low, high = chart.box["ratio1"]
    balanced = chart.point({"a": 1e-6, "b": 1.0})["ratio1"]
    room = REACH / math.sqrt(2)
    assert balanced == pytest.approx(-6 * math.log(10) / math.sqrt(2), abs=1e-6)
    assert (balanced - low, high) == pytest.approx((room, room), abs=1e-5)
    assert chart.point({"a": 0.0, "b": 1.0}) == {"ratio1": low}


def test_balanced_weights_are_tried_second():
    one = space(["a", "b"], a=0.01, b=1.0)
    assert initial_points(one, balanced=True) == [
        {"a": 0.5, "b": 0.5}, {"a": 0.01, "b": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0},
    ]  # fmt: skip
    assert {"a": 0.01, "b": 1.0} not in initial_points(one)


def score(coefficients):
    """Highest, 0.9, where b weighs 0.004 times what a does."""
    a, b = coefficients["a"], coefficients["b"]
    ratio = math.log(b / a) if a and b else 20.0
    return 0.9 - 0.005 * (ratio - math.log(0.004)) ** 2


def searched(trials=7, replayed=(), **options):
    search = AxSearch(trials=trials, initial_trials=6, **options)
    search.start(space(["a", "b"]))
    for trial in replayed:
        search.replay(trial)
    while not search.finished:
        point = search.ask()
        search.tell(Trial(len(search.history), point, score(point)))
    return search


def test_a_search_on_ratios_and_its_replay():
    ours = searched()
    assert [tuple(t.coefficients.values()) for t in ours.history[:3]] == [
        (0.5, 0.5), (1.0, 0.0), (0.0, 1.0),
    ]  # fmt: skip
    assert all(max(t.coefficients.values()) == 1.0 for t in ours.history[1:])
    assert searched(replayed=ours.history[:6]).history == ours.history
    assert ours.sensitivity() == {} and ours.pick().trial in ours.history


def test_a_polish_goes_along_the_ratios():
    ours = searched(trials=8, polish=2)
    centre = max(ours.history[:6], key=ours.rank)
    chart = LogRatios(ours.space)
    (low, high), start = chart.box["ratio1"], chart.point(centre.coefficients)["ratio1"]
    moved = chart.point(ours.history[6].coefficients)["ratio1"]
    # a step up would be at the edge, where a alone was tried
    assert start + 0.1 * (high - low) > high
    assert moved == pytest.approx(start - 0.1 * (high - low), abs=2e-6)


def test_a_linear_box_is_one_setting_away_and_its_log_is_known():
    linear = searched(coordinates="linear", trials=6)
    other = AxSearch(trials=6, initial_trials=6)
    other.start(SearchSpace(["a", "b"]))  # of a method whose scale matters
    assert isinstance(other._chart, Linear) and isinstance(linear._chart, Linear)
    with pytest.raises(UserError, match=r"trial 3 is of a search over a box .*coordinates linear"):
        searched(replayed=linear.history)
    assert searched(coordinates="linear", trials=6, replayed=linear.history).history


def test_bounds_are_of_a_linear_box():
    search = AxSearch()
    search.start(SearchSpace.of(["a", "b"], [], "whole", True, bounds=[0.1, 1]))
    assert isinstance(search._chart, Linear) and search._chart.box["a"] == (0.1, 1.0)
