r"""When to prune a trial: a rule on which answers of a part of a split were right.

The incumbent, the best trial so far, was scored on the whole split: it is known which of the
examples that this trial has not seen it got right. They fall into two cells: what the incumbent
got right, and what it got wrong. Of a cell the trial has seen n examples, drawn at random, and got
x right; m are unseen. Two merges agree on most examples, so that the answers within a cell vary
little: a hundred examples reveal a trial that is ten points below the incumbent.

.. math::
    \hat s = \frac1N \sum_{cells} x + m \frac xn, \quad
    U = \hat s + \frac1N \sqrt{\sum_{cells} \left(u - m \frac xn\right)^2}

with u the most of the m that can be right: the largest number with which x or fewer right ones
among n drawn without replacement have a probability above α (the exact hypergeometric bound). The
deviations of cells, and of tasks in an objective that is a weighted sum, add up in squares (Zou
and Donner 2008). A trial is stopped where U is below the best one's score.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fmerge.search.objective import Objective, Partial, Scores, binomial_error, shortfalls

CHANCE = 0.02
"""That a trial as good as the best is stopped: at all looks and for all reasons together.

Nominal: sums of squares are right for symmetric deviations. In races of trials that were as good
to the example it was 0.5% to 5.5%, most where few answers differ (``tests/test_stopping.py``).
"""


@dataclass(frozen=True)
class Cell:
    """Examples of a task on which the best trial did alike.

    Attributes:
        seen: n, how many of them the trial was scored on.
        right: x, how many of those it got right.
        unseen: m, how many are left.
    """

    seen: int
    right: int
    unseen: int

    @property
    def share(self) -> float:
        """x/n; a half where nothing was seen."""
        return self.right / self.seen if self.seen else 0.5

    def error(self) -> float:
        """Estimates the standard error of the number of right answers among the unseen."""
        if not self.seen or not self.unseen:
            return self.unseen / 2
        spread = binomial_error(self.share, self.seen) * math.sqrt(self.seen)
        return self.unseen * spread * math.sqrt(1 / self.seen + 1 / self.unseen)

    def reach(self, tail: float) -> float:
        """Bounds by how much that number may exceed its estimate, but for a probability."""
        most = _most_right(self.seen, self.right, self.unseen, tail)
        return most - self.unseen * self.share


@lru_cache(maxsize=4096)
def _most_right(seen: int, right: int, unseen: int, tail: float) -> int:
    from scipy.stats import hypergeom  # not for a command that stops nothing

    total = [right + more for more in range(unseen + 1)]
    chances = hypergeom.cdf(right, seen + unseen, total, seen)  # falls from 1
    return int((chances > tail).sum()) - 1


@dataclass(frozen=True)
class Standing:
    """What a part of a task's split tells of a trial.

    Attributes:
        cells: Its examples by what the best trial did.
    """

    cells: Sequence[Cell]

    @property
    def seen(self) -> int:
        """How many examples the trial was scored on."""
        return sum(cell.seen for cell in self.cells)

    @property
    def examples(self) -> int:
        """N, how many there are."""
        return self.seen + sum(cell.unseen for cell in self.cells)

    @property
    def score(self) -> float:
        """The estimated share of right answers on the whole split."""
        return sum(c.right + c.unseen * c.share for c in self.cells) / self.examples

    def error(self) -> float:
        """Estimates the standard error of ``score`` that the unseen examples leave."""
        return math.hypot(*(cell.error() for cell in self.cells)) / self.examples

    def reach(self, tail: float) -> float:
        """Bounds by how much the whole split's score may exceed ``score``."""
        return math.hypot(*(cell.reach(tail) for cell in self.cells)) / self.examples


def standing(trial: Sequence[bool], best: Sequence[bool]) -> Standing:
    """Compares a trial with the best one on the examples that it has seen.

    Args:
        trial: Whether it got each of the first n examples right.
        best: Whether the best trial did, of all N.

    Returns:
        Where it stands.
    """
    there, rest = best[: len(trial)], best[len(trial) :]
    cells = []
    for kind in (True, False):
        own = [right for right, other in zip(trial, there, strict=True) if other == kind]
        cells.append(Cell(len(own), sum(own), rest.count(kind)))
    return Standing(cells)


def should_prune(
    goal: Objective,
    trial: Mapping[str, Standing],
    best: Mapping[str, float],
    looks: int,
    chance: float = CHANCE,
) -> bool:
    """Decides whether a trial can be stopped.

    For every reason that it may be stopped for, at each of the looks, the upper bounds are taken
    at the level ``chance`` / (looks · reasons), so that together they err no more often. The
    reasons are the objective (for ``worst`` and ``worst_retained``, each task that counts: the
    worst task's score is at most any task's bound) and each task's bound, which the trial surely
    falls short of by more than the best one does in all. While the best one falls short of a
    bound, a lower objective is no reason.

    Args:
        goal: What is maximised, and the bounds.
        trial: Where it stands, by task.
        best: The best trial's scores on the whole split, by task.
        looks: How often it is decided in the life of a trial.
        chance: That a trial that is as good as the best one is stopped.

    Returns:
        Whether its bound is below what the best trial reached.
    """
    counted = len(goal.weights or trial) if goal.kind.startswith("worst") else 1
    tail = chance / (looks * (counted + len(goal.bounds)))
    scores = {task: one.score for task, one in trial.items()}
    reaches = {task: one.reach(tail) for task, one in trial.items()}
    uppers = {task: scores[task] + reaches[task] for task in trial}
    short = sum(shortfalls(best, goal.bounds).values())
    if any(missing > short for missing in shortfalls(uppers, goal.bounds).values()):
        return True
    if short:
        return False
    reached = goal.of(best, {}).objective or 0.0
    if goal.kind.startswith("worst"):
        return (goal.of(uppers, {}).objective or 0.0) < reached
    # the error of a weighted sum adds up in squares, and so do deviations
    sums = goal.of(scores, reaches)
    return (sums.objective or 0.0) + (sums.error or 0.0) < reached


def stopped_scores(goal: Objective, trial: Mapping[str, Standing]) -> Scores:
    """Words what a stopped trial showed.

    Args:
        goal: What is maximised.
        trial: Where it stands, by task.

    Returns:
        Estimates of the scores on the whole split. Their standard errors are, as of a trial that
        was scored in full, those about infinitely many examples: what the missing examples add
        is in ``partial`` alone.
    """
    scores = {task: one.score for task, one in trial.items()}
    missing = {task: one.error() for task, one in trial.items()}
    errors = {
        task: math.hypot(missing[task], binomial_error(scores[task], one.examples))
        for task, one in trial.items()
    }
    whole = goal.of(scores, errors)
    partial = Partial(
        sum(one.seen for one in trial.values()),
        sum(one.examples for one in trial.values()),
        goal.of(scores, missing).error or 0.0,
        missing,
    )
    return Scores(whole.metrics, whole.objective, whole.error, whole.errors, partial)
