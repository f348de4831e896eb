"""Trials in batches: what is proposed together, and what a resumed run proposes."""

from types import SimpleNamespace

import pytest

from fmerge.errors import UserError
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.merging.pool import InProcess
from fmerge.merging.trials import replayed
from fmerge.methods import Isotropic
from fmerge.search import AxSearch, Grid, SearchSpace, Sobol
from fmerge.search.base import BatchSearch, Search
from fmerge.search.objective import Scores

TASKS = ["x", "y"]
ONE_PROCESS = SimpleNamespace(
    is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda own: own)
)


class Assembler:
    """The merge of coefficients is these coefficients."""

    def of(self, method):
        return self

    def assemble(self, coefficients):
        return coefficients


class Sum(BatchSearch):
    """Proposes 1 + the sum of all scores that it was told, and a tenth more for each of a batch."""

    def __init__(self, trials=7):
        super().__init__()
        self.trials = trials

    @property
    def budget(self):
        return self.trials

    def ask_batch(self, count):
        self.asked = [*getattr(self, "asked", []), (len(self.history), count)]
        total = 1 + sum(trial.objective for trial in self.history)
        return [{"x": total + 0.1 * i, "y": 0.0} for i in range(count)]


def started(search, batch, trials=()):
    search.batch = batch
    search.start(SearchSpace(("x", "y")))
    replayed(ONE_PROCESS, search, trials)
    return search


def run(search, score=lambda body: body["x"] / 100, stop=lambda: 0):
    logged = []

    def scored(body):
        return Scores({"x": score(body)}, score(body))

    pool = InProcess(Assembler(), scored)
    try:
        MergeOptimizer().optimize(ONE_PROCESS, search, pool, logged.append, stop)
    except SystemExit:
        pass
    return logged


def test_a_batch_is_proposed_before_any_of_it_is_scored():
    search = started(Sum(), batch=3)
    found = [one["coefficients"]["x"] for one in run(search)]
    # by hand: each batch of 3 begins with 1 + a hundredth of all before it
    first = [1.0, 1.1, 1.2]
    second = [1.033, 1.133, 1.233]
    assert found == pytest.approx([*first, *second, 1.06699])
    assert search.asked == [(0, 3), (3, 3), (6, 1)]


@pytest.mark.parametrize("search", [Sobol(trials=5, seed=3), Grid(points=5)])
def test_a_search_that_looks_at_no_score_has_the_same_trials_in_batches(search):
    assert run(started(search, batch=2)) == run(started(search, batch=1))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("done", range(7))
def test_a_run_that_ends_anywhere_is_resumed_to_the_same_trials(batch, done):
    whole = started(Sum(), batch)
    expected = run(whole)
    rest = run(started(Sum(), batch, whole.history[:done]))
    assert expected[:done] + rest == expected


def test_more_trials_complete_the_last_batch():
    short, long = started(Sum(5), 2), started(Sum(8), 2)
    before, expected = run(short), run(long)
    assert before + run(started(Sum(8), 2, short.history)) == expected


@pytest.mark.parametrize("after", range(1, 7))
def test_a_signal_ends_a_run_within_a_batch(after):
    search, count = Sum(), 0

    def score(body):
        nonlocal count
        count += 1
        return body["x"] / 100

    logged = run(started(search, 3), score, stop=lambda: 15 if count >= 2 * after else 0)
    assert len(logged) == min(after, 7)  # a trial is scored twice here: its metric and objective
    assert logged == run(started(Sum(), 3))[:after]


def test_a_batch_is_completed_although_one_of_it_ends_the_search():
    def score(body):
        return 1.0 if body["x"] == 1.1 else 0.5

    search = started(Sum(), 3)
    whole = run(search, score)
    assert len(whole) == 3 and search.ended.startswith("the objective of trial 1 cannot rise")
    again = started(Sum(), 3, search.history[:2])
    assert not again.finished and run(again, score) == whole[2:] and again.finished


def test_a_log_of_another_search_is_refused():
    search = started(Sum(), 3)
    run(search)
    other = [search.history[0].from_record(one.as_record()) for one in search.history[:4]]
    other[3].coefficients["x"] += 1e-7  # of another machine
    assert started(Sum(), 3, other).history[3].coefficients == other[3].coefficients
    other[3].coefficients["x"] += 1e-5
    with pytest.raises(UserError, match=r"trial 3 is \{'x': 1.03.*but the search proposes"):
        started(Sum(), 3, other)


def test_other_processes_count_the_trials_of_a_batch():
    first = started(Sum(4), 3)
    expected = run(first)
    received = iter([
        [one.coefficients for one in first.history[:3]],
        [first.history[3].coefficients],
    ])
    second = SimpleNamespace(
        is_global_zero=False, strategy=SimpleNamespace(broadcast=lambda own: next(received))
    )
    search, logged = Sum(4), []
    search.batch = 3
    search.start(SearchSpace(("x", "y")))
    replayed(second, search, first.history[:1])  # which proposes the first batch once more
    assert len(search.pending) == 2
    received = iter([search.pending, [first.history[3].coefficients]])
    pool = InProcess(Assembler(), lambda body: Scores({"x": body["x"]}, body["x"]))
    MergeOptimizer().optimize(second, search, pool, logged.append)
    assert [one.coefficients for one in search.history] == [one["coefficients"] for one in expected]
    assert logged == []


class OneByOne(Search):
    budget = 4

    def ask(self):
        return {"x": 1.0, "y": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": OneByOne(), "batch": 2}, "batch: is 2, but OneByOne makes one trial at a time: "
         "each of its proposals depends on the scores of all before it"),
        ({"search": AxSearch(20, polish=3), "batch": 3}, "AxSearch makes one trial at a time: its "
         "polish goes from one trial to the next"),
        ({"search": Sobol(), "racing": True, "batch": 2}, "one trial at a time: --optimizer.racing "
         "compares each with the best before it"),
        ({"batch": 0}, "batch: is 0, but must be a number of trials from 1"),
        ({"batch": True}, "batch: is True, but must be a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_in_batches_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        MergeOptimizer(**options).check(Isotropic(), TASKS, TASKS, True)


def test_a_batch_of_one_is_what_every_search_makes():
    assert MergeOptimizer(OneByOne(), batch=1).check(Isotropic(), TASKS, TASKS, True).batch == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": 1, "search": OneByOne()}, "parallel: is 1, but OneByOne makes one trial at"),
        ({"parallel": 2, "racing": True}, "parallel: is 2, but Sobol makes .* --optimizer.racing"),
        ({"parallel": -1}, "parallel: is -1, but must be a number of trials from 1"),
        ({"parallel": 4, "batch": 3}, "batch: is 3, so that no 4 trials .* are known at a time"),
    ],
)
def test_what_cannot_be_made_side_by_side_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        MergeOptimizer(**{"search": Sobol(), **options}).check(Isotropic(), TASKS, TASKS, True)


@pytest.mark.parametrize(
    ("options", "batch"),
    [({}, 1), ({"parallel": 3}, 3), ({"batch": 2}, 2), ({"parallel": 2, "batch": 5}, 5)],
)
def test_as_many_are_proposed_as_are_made_side_by_side(options, batch):
    found = MergeOptimizer(Sobol(), **options).check(Isotropic(), TASKS, TASKS, True)
    assert found.batch == batch
