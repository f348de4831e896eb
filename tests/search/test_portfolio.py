"""A search over methods: the race, its leaders, the shared model, and their replay."""

import pytest

from fmerge.errors import UserError
from fmerge.search import SearchSpace, Trial
from fmerge.search.objective import Objective
from fmerge.search.portfolio import PortfolioSearch

USUAL = {"Average": None, "Sum": 0.3, "Worst": None, "Mean": None}
BONUS = {"Average": 0.5, "Sum": 0.6, "Worst": 0.1, "Mean": 0.55}


def score(method, point):
    return BONUS[method] - (point["a"] - 0.4) ** 2 - (point["b"] - 0.3) ** 2


def made(trials, leaders=2):
    search = PortfolioSearch(USUAL, frozenset(USUAL) - {"Average"}, leaders, trials)
    search.start(SearchSpace(["a", "b"]))
    return search


def run(search, failing=()):
    while not search.finished:
        point, index = search.ask(), len(search.history)
        if index in failing:
            search.tell(Trial(index, point, status="failed", reason="x", method=search.method))
            continue
        value = score(search.method, point)
        search.tell(Trial(index, point, value, {"t": value}, method=search.method))
    return search


def test_the_race_comes_first_and_the_leaders_go_on():
    search = run(made(8))
    assert [t.method for t in search.history[:4]] == list(USUAL)
    assert [t.coefficients["a"] for t in search.history[:4]] == [0.5, 0.3, 0.5, 0.5]
    # of those with coefficients the best two, by turns at quasi-random points
    assert [t.method for t in search.history[4:]] == ["Sum", "Mean", "Sum", "Mean"]
    assert len({tuple(t.coefficients.values()) for t in search.history[4:]}) == 4
    alone = run(made(6, leaders=1))
    assert [t.method for t in alone.history[4:]] == ["Sum", "Sum"]


def test_the_best_that_looks_at_no_examples():
    search = PortfolioSearch(USUAL, frozenset(), trials=4, data_free=frozenset({"Worst", "Mean"}))
    search.start(SearchSpace(["a", "b"]))
    assert search.best_data_free() is None
    run(search)
    assert search.best().method == "Sum" and search.best_data_free().method == "Mean"


@pytest.mark.slow
def test_the_model_chooses_methods_and_a_replay_repeats_it():
    whole = run(made(10), failing={2, 5})
    assert {t.method for t in whole.history[8:]} <= {"Sum", "Mean"}
    again = made(10)
    for trial in whole.history[:9]:
        again.replay(trial)
    assert run(again).history == whole.history
    assert whole.runner_up().index != whole.best().index


def test_what_does_not_fit_is_said():
    with pytest.raises(UserError, match="Auto: trials is 0, but at least 1 is needed"):
        PortfolioSearch(USUAL, frozenset(USUAL), trials=0)
    search = PortfolioSearch(USUAL, frozenset(USUAL))
    parts = {"mean": Objective(), "worst": Objective("worst")}
    with pytest.raises(UserError, match="Auto: is of one objective, but there are 2"):
        search.start(SearchSpace(["a", "b"]), Objective(parts=parts))
    with pytest.raises(UserError, match="trial 0 is of the method 'Gone', but that is not in the"):
        made(3).replay(Trial(0, {"a": 0.5, "b": 0.5}, 0.5, {"t": 0.5}, method="Gone"))
