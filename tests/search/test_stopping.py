"""When a search ends by itself: nothing is left to gain, or it has long been level."""

import pytest

from fmerge.errors import UserError
from fmerge.search import AxSearch, SearchSpace, Sobol, Trial
from fmerge.search.objective import Objective
from fmerge.search.stopping import check_patience, is_highest


def told(scores, search=None, goal=None, patience=None):
    """A search of 20 trials after those of x alone, or of x and y."""
    search = search or Sobol(trials=20)
    search.start(SearchSpace(["x", "y"]), goal)
    search.patience = patience
    for index, metrics in enumerate(scores):
        both = dict(zip("xy", metrics if isinstance(metrics, tuple) else (metrics,), strict=False))
        scored = search.goal.of(both, {})
        trial = Trial(index, {"x": index / 20, "y": 0.5}, scored.objective, both,
                      objectives=scored.objectives)  # fmt: skip
        search.tell(trial)
    return search


def test_nothing_is_left_to_gain():
    search = told([0.5, 1.0])
    assert search.finished and search.ended == (
        "the objective of trial 1 cannot rise: every score that counts is 1"
    )
    assert not told([0.5, 0.999]).finished and not told([]).finished
    assert not told([(1.0, 0.9)]).finished and told([(1.0, 1.0)]).finished
    spent = told([0.5] * 19 + [1.0])
    assert spent.finished and spent.ended == ""  # it was all the budget


@pytest.mark.parametrize(
    ("goal", "metrics", "highest"),
    [
        (Objective("worst"), {"x": 1.0, "y": 0.9}, False),
        (Objective("worst"), {"x": 1.0, "y": 1.0}, True),
        (Objective(weights={"x": 1.0}), {"x": 1.0, "y": 0.2}, True),  # the target alone counts
        (Objective(weights={"x": 1.0}, bounds={"y": 0.5}), {"x": 1.0, "y": 0.2}, False),
        # 1/0.8 and 1/0.5 are the most that can be retained
        (Objective("retained", own={"x": 0.8, "y": 0.5}), {"x": 1.0, "y": 1.0}, True),
        (Objective("retained", own={"x": 0.8, "y": 0.5}), {"x": 0.8, "y": 0.5}, False),
        # the expert of x has 1 already: whatever y scores, no more than 1 is retained
        (Objective("worst_retained", own={"x": 1.0, "y": 0.5}), {"x": 1.0, "y": 0.6}, True),
        # percentages of a metric of a user's own
        (Objective(), {"x": 57.0, "y": 80.0}, False),
    ],
)
def test_what_is_the_highest_for_each_kind(goal, metrics, highest):
    trial = Trial(0, {}, goal.of(metrics, {}).objective, metrics)
    assert is_highest(trial, goal) == highest


def test_all_of_several_objectives_must_be_at_their_highest():
    parts = {"mean": Objective(), "x": Objective(weights={"x": 1.0})}
    goal = Objective(parts=parts)
    assert not told([(1.0, 0.5)], goal=goal).finished
    assert told([(1.0, 1.0)], goal=goal).finished


def test_a_search_that_is_level_ends_where_it_is_told_to():
    scores = [0.5, 0.4, 0.6, 0.6, 0.1, 0.2]
    assert not told(scores).finished  # off by default: a budget is what was asked for
    assert not told(scores, patience=4).finished
    assert told(scores, patience=3).ended == "no trial in 3 was better than trial 2"
    assert not told([*scores[:5], 0.7], patience=3).finished
    # of several objectives a new point of the front is an improvement
    goal = Objective(parts={"x": Objective(weights={"x": 1.0}), "y": Objective(weights={"y": 1.0})})
    rising = [(0.5, 0.1), (0.4, 0.2), (0.3, 0.3)]
    assert not told(rising, goal=goal, patience=1).finished
    assert told([*rising, (0.2, 0.2)], goal=goal, patience=1).finished


def test_patience_begins_after_the_initial_trials():
    search = AxSearch(trials=20, initial_trials=8, starts=False)
    search.start(SearchSpace(["x", "y"]))
    search.patience = 2
    for index in range(9):
        assert not search.finished
        search.history.append(Trial(index, {"x": 0.1, "y": 0.1}, 0.5 - index / 100, {"x": 0.5}))
    search.history.append(Trial(9, {"x": 0.1, "y": 0.2}, 0.1, {"x": 0.1}))
    assert search.ended == "no trial in 2 was better than trial 0"


@pytest.mark.parametrize("patience", [0, -1, 2.5, True])
def test_a_patience_that_is_none_is_said(patience):
    with pytest.raises(
        UserError, match=f"--optimizer.search_patience: is {patience}, but must be a num"
    ):
        check_patience(patience)
