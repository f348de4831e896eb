"""How the tasks' scores trade off over the trials of a search."""

from collections.abc import Sequence

from fmerge.search.base import Trial
from fmerge.search.pareto import non_dominated


def unbeaten(trials: Sequence[Trial]) -> list[Trial]:
    """Finds the trials that no other beats: none is as good on every task and better on one.

    Args:
        trials: Any trials.

    Returns:
        Those that were scored on as many tasks as any, the first of several with the same scores.
    """
    most = max((len(trial.metrics) for trial in trials), default=0)
    scored = [t for t in trials if t.status == "ok" and len(t.metrics) == most > 0]
    found = non_dominated([tuple(trial.metrics.values()) for trial in scored])
    return [scored[i] for i in found]
