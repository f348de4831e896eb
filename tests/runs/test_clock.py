"""Budgets of time: how they are written, and when they are spent."""

from types import SimpleNamespace

import pytest

from fmerge.errors import UserError
from fmerge.runs.clock import Clock, seconds_of
from fmerge.runs.stage_facts import stage_facts
from fmerge.search import Sobol, Trial
from fmerge.search.portfolio import PortfolioSearch


class Same:
    """The strategy of a single process."""

    def broadcast(self, value):
        return value


TRAINER = SimpleNamespace(strategy=Same(), is_global_zero=True)


def clock(times, **options):
    moments = iter(times)
    return Clock(trainer=TRAINER, now=lambda: next(moments), **options)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("1h30min", 5400), ("1.5 h", 5400), (None, None)],
)
def test_a_budget_has_a_unit(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "", "ten minutes", "-1s", "0s", "10min!"])
def test_what_is_no_time_is_one_line(text):
    with pytest.raises(UserError, match="--budget: is .* but must be a time with its unit, such"):
        seconds_of(text)


def test_parts_end_before_a_lap_that_would_leave_their_share():
    noted = []
    one = clock([0, 3, 7, 12], budget=20, reach={"search": 0.5}, note=lambda s: noted.append({**s}))
    one.lap("search")  # 3 s; another would end at 6 of 10
    assert not one.over("search")
    one.lap("search")  # 4 s, until 7; another would end at 11
    assert one.over("search") and not one.over("polish")
    one.lap("polish")  # 5 s, until 12; another would end at 17 of 20
    assert one.spent == {"search": 7, "polish": 5} == noted[-1]
    assert not one.over("polish") and one.over("search")


def test_what_was_spent_before_an_interruption_counts():
    one = clock([0, 1], budget=20, spent={"search": 18.5})
    one.lap("search")
    assert one.total == 19.5 and one.over("search")


def test_without_a_budget_nothing_ends():
    one = clock([0, 1000])
    one.lap("search")
    assert not one.over("search")
    one.check_first(1)


def test_a_budget_that_one_trial_spends_is_refused():
    one = clock([0, 3], budget=2)
    one.check_first(0)
    one.lap("search")
    with pytest.raises(UserError, match="--budget: is 2 s, but the first trial alone took 3.0 s; "):
        one.check_first(1)


def test_the_best_before_and_after_each_part():
    search = PortfolioSearch({"Average": None, "TIES": None}, frozenset({"TIES"}))
    scores = [0.5, 0.4, 0.6, 0.55, 0.55, 0.7]
    stages = ["", "", "", "", "polish", "polish"]
    trials = [Trial(i, {}, s, {"t": s}, stage=n) for i, (s, n) in enumerate(zip(scores, stages))]  # noqa: B905
    one = clock([0], spent={"race": 4.0, "search": 3.0, "polish": 2.0, "tests": 1.0})
    found = stage_facts(search, trials, one)
    assert [(f.name, f.trials, f.before, f.after, f.seconds) for f in found] == [
        ("race", 2, None, 0.5, 4.0),
        ("search", 2, 0.5, 0.6, 3.0),
        ("polish", 2, 0.6, 0.7, 2.0),
        ("tests", 0, None, None, 1.0),
    ]
    assert stage_facts(Sobol(), trials, clock([0], kept=False)) == []
