"""The box of coefficients, and what is no box."""

import pytest

from fmerge.errors import UserError
from fmerge.search import AxSearch, Dirichlet, Fixed, Grid, RandomSearch, SearchSpace, Sobol, Trial
from fmerge.search.coordinate_search import coordinate_point
from fmerge.search.initial_points import initial_points

NAN, INFINITE = float("nan"), float("inf")


def test_the_box_by_coefficient():
    assert SearchSpace(["a", "b"]).box == {"a": (0.0, 1.0), "b": (0.0, 1.0)}
    both = SearchSpace.of(["a", "b"], [], bounds=[0, 1.5])
    assert both.box == {"a": (0.0, 1.5), "b": (0.0, 1.5)}
    names = ["embed.w", "layer.0.w", "layer.1.w"]
    divided = SearchSpace.of(["a", "b"], names, 2, bounds={"b": [-1, 1]})
    assert divided.box == {
        "a/block0": (0.0, 1.0), "a/block1": (0.0, 1.0),
        "b/block0": (-1.0, 1.0), "b/block1": (-1.0, 1.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"c": [0, 1]}, "--optimizer.bounds: unknown expert 'c'; known: a, b"),
        ([1, 0], r"--optimizer.bounds: are \[1, 0\] for 'a', but must be two numbers"),
        ([0.5, 0.5], "must be two numbers, the smaller one first"),
        ([0], "must be two numbers"),
        ([0, 1, 2], "must be two numbers"),
        ([0, INFINITE], "must be two numbers"),
        ([NAN, 1], "must be two numbers"),
        ([False, True], "must be two numbers"),
        ({"a": 1.0}, "are 1.0 for 'a', but must be two numbers"),
    ],
)
def test_what_is_no_box_is_refused(bounds, message):
    with pytest.raises(UserError, match=message):
        SearchSpace.of(["a", "b"], [], bounds=bounds)


@pytest.mark.parametrize("search", [Grid(), Dirichlet()])
def test_searches_of_sums_refuse_bounds(search):
    with pytest.raises(UserError, match=f"bounds: {type(search).__name__} proposes coefficients"):
        search.start(SearchSpace.of(["a", "b"], [], bounds=[0, 1.5]))


NUMBERS = {"LiNeS.a": (0.25, 0.0, 1.0), "LiNeS.b": (0.5, 0.0, 2.0)}


def with_numbers(count=2, **options):
    return SearchSpace.of(["a", "b", "c"][:count], [], numbers=NUMBERS, **options)


def first(search, space, count=1):
    search.start(space)
    found = []
    for index in range(count):
        found.append(search.ask())
        search.tell(Trial(index, found[-1], 0.5))
    return found


def test_a_methods_numbers_are_part_of_the_box():
    space = with_numbers(bounds=[-1, 1], scale_invariant=True)
    assert space.coefficients == ("a", "b")
    assert space.names == ("a", "b", "LiNeS.a", "LiNeS.b")
    assert space.own == {"LiNeS.a": 0.25, "LiNeS.b": 0.5}
    assert list(space.box.values()) == [(-1.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 2.0)]
    assert not space.scale_invariant  # a box, not ratios
    names = ["layer.0.w", "layer.1.w"]
    divided = SearchSpace.of(["a"], names, 2, numbers=NUMBERS)
    assert divided.names == ("a/block0", "a/block1", "LiNeS.a", "LiNeS.b")


def test_initial_points_have_the_methods_own_numbers():
    points = initial_points(with_numbers())
    assert points[0] == {"a": 0.5, "b": 0.5, "LiNeS.a": 0.25, "LiNeS.b": 0.5}
    assert {(point["LiNeS.a"], point["LiNeS.b"]) for point in points} == {(0.25, 0.5)}


def test_fixed_coefficients_leave_the_methods_own_numbers_or_change_them():
    own = {"LiNeS.a": 0.25, "LiNeS.b": 0.5}
    assert first(Fixed(), with_numbers()) == [{"a": 0.5, "b": 0.5, **own}]
    assert first(Fixed({"a": 1, "b": 0}), with_numbers()) == [{"a": 1.0, "b": 0.0, **own}]
    given = Fixed({"a": 1, "b": 0, "LiNeS.b": 1.5})
    assert first(given, with_numbers()) == [{"a": 1.0, "b": 0.0, "LiNeS.a": 0.25, "LiNeS.b": 1.5}]
    with pytest.raises(UserError, match="all coefficients are 0"):
        Fixed({"a": 0, "b": 0}).start(with_numbers())
    with pytest.raises(UserError, match="are given for .*LiNeS.c"):
        Fixed({"a": 0, "b": 1, "LiNeS.c": 1}).start(with_numbers())


def test_searches_propose_numbers_within_their_bounds():
    assert first(Grid(3), with_numbers(), 3)[1] == {
        "a": 0.5, "b": 0.5, "LiNeS.a": 0.25, "LiNeS.b": 0.5
    }  # fmt: skip
    for search in (Dirichlet(20), RandomSearch(20), Sobol(20)):
        points = first(search, with_numbers(3), 20)
        assert all(list(point) == ["a", "b", "c", "LiNeS.a", "LiNeS.b"] for point in points)
        a, b = ([point[f"LiNeS.{name}"] for point in points] for name in "ab")
        assert 0 <= min(a) < 0.3 < 0.7 < max(a) <= 1 and 0 <= min(b) < 0.6 < 1.4 < max(b) <= 2
        if isinstance(search, Dirichlet):
            sums = [sum(point[name] for name in "abc") for point in points]
            assert sums == pytest.approx([1.0] * 20)
    # the coefficients are those without numbers
    plain = first(Dirichlet(20), SearchSpace(["a", "b"]), 20)
    both = first(Dirichlet(20), with_numbers(), 20)
    assert [{k: one[k] for k in "ab"} for one in both] == plain


def test_the_coordinate_search_steps_in_numbers_too():
    space = with_numbers()
    best = Trial(0, {"a": 0.5, "b": 0.5, **space.own}, 0.5)
    history = [best, *(Trial(i, {"a": i, "b": i, **space.own}, 0.1) for i in range(1, 5))]
    point = coordinate_point(history, 1, lambda trial: (trial.objective,), space.box)
    assert point["LiNeS.a"] == pytest.approx(0.35) and point["a"] == 0.5


@pytest.mark.slow
def test_ax_searches_numbers():
    search = AxSearch(trials=4, initial_trials=2, starts=False)
    points = first(search, with_numbers(), 4)
    assert all(set(point) == set(with_numbers().names) for point in points)
    assert all(0 <= point["LiNeS.b"] <= 2 for point in points)
