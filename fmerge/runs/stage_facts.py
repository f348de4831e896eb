"""What each part of a run brought, and how long it took."""

from collections.abc import Sequence

from fmerge.report.parts import StageFacts
from fmerge.runs.clock import Clock
from fmerge.runs.stages import PLAIN_AVERAGE
from fmerge.search import Search, Trial
from fmerge.search.portfolio import PortfolioSearch


def stage_facts(search: Search, trials: Sequence[Trial], clock: Clock | None) -> list[StageFacts]:
    """Lists the parts of a run.

    Args:
        search: The search, which ranks trials.
        trials: All trials of the run.
        clock: The seconds by part, in order.

    Returns:
        A line for each part; of those that made trials the best objective before and after. None
        of a run of one method without a budget.
    """
    if clock is None or not clock.kept:
        return []
    found: list[StageFacts] = []
    best: Trial | None = None
    for name, seconds in clock.spent.items():
        own = [trial for trial in trials if _part_of(trial, search) == name]
        before = best
        for trial in own if name != PLAIN_AVERAGE else ():  # which is never chosen
            if trial.status == "ok" and (best is None or search.rank(trial) > search.rank(best)):
                best = trial
        after = best if own else None
        found.append(
            StageFacts(
                name=name,
                seconds=seconds,
                trials=len(own),
                before=before.objective if own and before is not None else None,
                after=None if after is None else after.objective,
            )
        )
    return found


def _part_of(trial: Trial, search: Search) -> str:
    if trial.stage:
        return trial.stage
    raced = isinstance(search, PortfolioSearch) and trial.index < len(search.usual)
    return "race" if raced else "search"
