"""When a search ends before its budget: its objective cannot rise, or has long been level."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fmerge.errors import UserError
from fmerge.search.objective import Objective, shortfalls

if TYPE_CHECKING:
    from fmerge.search.base import Search
    from fmerge.search.trial import Trial

_ROUNDING = 1e-9


def reason_to_stop(search: "Search") -> str:
    """Says why no further trial is worth its time.

    Args:
        search: The search.

    Returns:
        Half a sentence; empty while there is no reason.
    """
    # the last batch alone: the search would have ended at an earlier one, and may be of thousands
    for last in search.history[-search.batch :]:
        if last.status == "ok" and is_highest(last, search.goal):
            return f"the objective of trial {last.index} cannot rise: every score that counts is 1"
    if search.patience is None:
        return ""
    level, latest = level_of(search)
    if level < search.patience:
        return ""
    return f"no trial in {level} was better than trial {latest}"


def level_of(search: "Search") -> tuple[int, int]:
    """Counts the last trials that were not better than one before them.

    Args:
        search: The search.

    Returns:
        How many there are, the initial ones not counted, and the trial that was better; 0 and -1
        where none has a score.
    """
    if all(trial.status != "ok" for trial in search.history):
        return 0, -1
    best = search.best()
    # of several objectives an improvement is a new point of the front
    latest = max((trial.index for trial in search.front()), default=best.index)
    place = next(i for i, trial in enumerate(search.history) if trial.index == latest)
    return max(0, len(search.history) - max(place + 1, search.initial)), latest


def is_highest(trial: "Trial", goal: Objective) -> bool:
    """Tells whether no merge can have a higher objective.

    Args:
        trial: A trial that was scored.
        goal: The objective; scores are at most 1.

    Returns:
        Whether every objective is that of scores of 1, and the bounds are met.
    """
    if not trial.metrics or shortfalls(trial.metrics, goal.bounds):
        return False
    top = goal.of(dict.fromkeys(trial.metrics, 1.0), {})
    if trial.objectives:
        return _same(trial.objectives, top.objectives)
    return _same({"": trial.objective}, {"": top.objective})


def check_patience(patience: object) -> None:
    """Checks how long a search may be level.

    Args:
        patience: Trials, or None.

    Raises:
        UserError: If it is no number from 1.
    """
    if patience is not None and (
        not isinstance(patience, int) or isinstance(patience, bool) or patience < 1
    ):
        raise UserError(
            f"--optimizer.search_patience: is {patience}, but must be a number of trials from 1; "
            "leave it out to use the whole budget"
        )


def _same(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    # not "at least": metrics of a user's own may have no highest value
    pairs: Sequence[tuple[float | None, float | None]] = [
        (value, other.get(name)) for name, value in one.items()
    ]
    return all(a is not None and b is not None and abs(a - b) < _ROUNDING for a, b in pairs)
