"""The rule that stops trials: worked by hand, and how often it errs."""

import math
import random

import pytest

from fmerge.data.blocks import SHARES
from fmerge.search.early_stopping import (
    CHANCE,
    Cell,
    Standing,
    should_prune,
    standing,
    stopped_scores,
)
from fmerge.search.objective import Objective


def test_a_standing_by_hand():
    # of the five that the best got right three are seen, two of them right; of the three that it
    # got wrong one is seen, and wrong
    best = [True, True, False, True, True, False, True, False]
    one = standing([True, False, False, True], best)
    assert one == Standing([Cell(3, 2, 2), Cell(1, 0, 2)])
    assert (one.seen, one.examples) == (4, 8)
    assert one.score == pytest.approx((2 + 2 * 2 / 3) / 8)
    # shares 2/3 and, half an example away from 0, 1/2; 1/n* = 1/3 + 1/2 and 1 + 1/2
    errors = [2 * math.sqrt(2 / 9 * 5 / 6), 2 * math.sqrt(1 / 4 * 3 / 2)]
    assert one.error() == pytest.approx(math.hypot(*errors) / 8)


def test_the_reach_is_exact():
    """By counting: of 3 seen 1 right, 4 unseen, of which k are right."""

    def chance(k):  # that of k + 1 right ones of 7 at most one is among the 3
        ways = (math.comb(k + 1, i) * math.comb(6 - k, 3 - i) for i in (0, 1))
        return sum(ways) / math.comb(7, 3)

    for tail in (0.01, 0.1, 0.2, 0.3, 0.5, 0.9):
        most = max(k for k in range(5) if chance(k) > tail)
        assert Cell(3, 1, 4).reach(tail) == pytest.approx(most - 4 / 3)
    assert chance(4) == pytest.approx(1 / 7) and chance(3) > 0.3  # five right: both wrong ones
    assert Cell(25, 20, 0).reach(0.01) == 0 == Cell(25, 20, 0).error()
    # nothing seen: a half, give or take a half
    assert Cell(0, 0, 6).share == 0.5 and Cell(0, 0, 6).reach(0.01) == 3


def test_a_finished_split_has_the_score_itself():
    one = standing([True, False, True, True], [True, True, False, False])
    assert one.score == 0.75 and one.error() == 0 == one.reach(0.01)


def ranks(trial_right, trial_wrong, n=100, of=400, best=0.8):
    """A trial's share right of what the best got right, and of what it got wrong."""
    cells = []
    for part, share in ((best, trial_right), (1 - best, trial_wrong)):
        cells.append(Cell(round(n * part), round(n * part * share), round((of - n) * part)))
    return Standing(cells)


@pytest.mark.parametrize(
    ("goal", "trial", "stops"),
    [
        # 0.8·0.8 + 0.2·0.2 = 0.68 beside 0.8, with a reach of about 0.09
        (Objective(), {"a": ranks(0.8, 0.2)}, True),
        # 0.8·0.9 + 0.2·0.2 = 0.76
        (Objective(), {"a": ranks(0.9, 0.2)}, False),
        # two tasks of that kind: half the difference with 1/√2 of the reach
        (Objective(), {"a": ranks(0.8, 0.2), "b": ranks(1.0, 0.0)}, True),
        (Objective(), {"a": ranks(0.8, 0.2), "b": ranks(1.0, 0.5)}, False),
        (Objective(weights={"b": 1.0}), {"a": ranks(0.5, 0.2), "b": ranks(1.0, 0.0)}, False),
        # the worst task of the best trial has 0.8: any task that surely has less is enough
        (Objective("worst"), {"a": ranks(0.75, 0.2), "b": ranks(1.0, 1.0)}, True),
        (Objective("worst"), {"a": ranks(0.9, 0.2), "b": ranks(0.9, 0.2)}, False),
        # shares of 0.4 and 0.8: the best keeps 1 at the worst, task a of the trial 2·0.68
        (
            Objective("worst_retained", own={"a": 0.4, "b": 0.8}),
            {"a": ranks(0.8, 0.2), "b": ranks(0.95, 0.2)},
            False,
        ),
        # better on the whole, but surely below a bound that the best keeps
        (Objective(bounds={"a": 0.79}), {"a": ranks(0.75, 0.2), "b": ranks(1.0, 1.0)}, True),
        (Objective(bounds={"a": 0.6}), {"a": ranks(0.75, 0.2), "b": ranks(1.0, 1.0)}, False),
        # the best falls short by 0.1 itself: only what surely misses more is hopeless
        (Objective(bounds={"a": 0.9}), {"a": ranks(0.9, 0.2)}, False),
        (Objective(bounds={"a": 0.9}), {"a": ranks(0.6, 0.2)}, True),
    ],
)
def test_what_is_hopeless(goal, trial, stops):
    assert should_prune(goal, trial, dict.fromkeys(trial, 0.8), looks=4) is stops


def test_the_level_is_shared_by_looks_and_reasons():
    """The bound is where the formula puts it, for one look and for more reasons."""
    cell = Cell(100, 70, 300)
    for looks, goal, reasons in (
        (1, Objective(), 1),
        (4, Objective(), 1),
        (4, Objective(bounds={"a": 0.1}), 2),
        (2, Objective("worst", bounds={"a": 0.1}), 2),
    ):
        upper = (70 + 300 * 0.7 + cell.reach(CHANCE / (looks * reasons))) / 400
        stand = {"a": Standing([cell])}
        assert not should_prune(goal, stand, {"a": upper - 1e-9}, looks)
        assert should_prune(goal, stand, {"a": upper + 1e-9}, looks)


def test_a_stopped_trial_tells_both_errors():
    trial = {"a": ranks(0.8, 0.2), "b": ranks(0.9, 0.2)}
    scores = stopped_scores(Objective(), trial)
    assert scores.objective == pytest.approx((0.68 + 0.76) / 2)
    assert scores.partial.examples == 200 and scores.partial.of == 800
    for task, share in (("a", 0.68), ("b", 0.76)):
        missing = scores.partial.errors[task]
        assert missing == trial[task].error() > 0
        whole = math.sqrt(missing**2 + share * (1 - share) / 400)
        assert scores.errors[task] == pytest.approx(whole)
    assert scores.partial.error == pytest.approx(math.hypot(*scores.partial.errors.values()) / 2)
    assert scores.error == pytest.approx(math.hypot(*scores.errors.values()) / 2)


def raced(generator, goal, best, trial):
    """Whether a trial is stopped when the examples come in a random order."""
    orders = {task: generator.sample(range(len(one)), len(one)) for task, one in best.items()}
    scores = {task: sum(one) / len(one) for task, one in best.items()}
    looks = [share for share in SHARES if share < 1]
    for share in looks:
        stands = {
            task: standing(
                [trial[task][i] for i in order[: round(share * len(order))]],
                [best[task][i] for i in order],
            )
            for task, order in orders.items()
        }
        if should_prune(goal, stands, scores, len(looks)):
            return True
    return False


def made(n, both, only_best, only_trial):
    """Answers of the best and of a trial: how many both had right, and each alone."""
    rest = n - both - only_best - only_trial
    best = [True] * (both + only_best) + [False] * (only_trial + rest)
    trial = [True] * both + [False] * only_best + [True] * only_trial + [False] * rest
    return best, trial


@pytest.mark.parametrize(
    ("goal", "kinds"),
    [
        # as good as the best, to the example: as many right, others
        (Objective(), {"a": (300, 160, 30, 30)}),
        (Objective(), {"a": (300, 280, 5, 5)}),  # few differ
        (Objective(), {"a": (200, 120, 30, 10), "b": (200, 90, 10, 30)}),
        (Objective("worst"), {"a": (200, 100, 20, 20), "b": (200, 100, 20, 20)}),
        # on its bound, to the example
        (Objective(bounds={"a": 0.6}), {"a": (200, 90, 40, 30), "b": (200, 90, 10, 40)}),
    ],
)
def test_a_trial_as_good_as_the_best_is_rarely_stopped(goal, kinds):
    """In 5% of 500 races at most, for a nominal 2%."""
    pairs = {task: made(*numbers) for task, numbers in kinds.items()}
    best, trial = ({task: pair[k] for task, pair in pairs.items()} for k in (0, 1))
    generator = random.Random(3)
    stopped = sum(raced(generator, goal, best, trial) for _ in range(500))
    assert stopped <= 25


@pytest.mark.parametrize(
    ("less", "at_most", "at_least"), [(-9, 2, 0), (12, 200, 30), (30, 150, 135)]
)
def test_better_ones_stay_and_worse_ones_go(less, at_most, at_least):
    """Of 150 races at 300 examples: 3 points better 1% at most, 10 points worse 9 in 10."""
    best, trial = made(300, 160, 30 + max(less, 0), 30 + max(-less, 0))
    generator = random.Random(5)
    stopped = sum(raced(generator, Objective(), {"a": best}, {"a": trial}) for _ in range(150))
    assert at_least <= stopped <= at_most
