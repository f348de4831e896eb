"""The box of coefficients, and what is no box."""

import pytest

from fmerge.errors import UserError
from fmerge.search import Dirichlet, Grid, SearchSpace

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
