"""How long the parts of a run take, and when its budget of time is spent."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lightning.pytorch import Trainer

from fmerge.errors import UserError
from fmerge.merging.trials import Score
from fmerge.params import Params
from fmerge.search import Search
from fmerge.search.objective import Scores
from fmerge.search.portfolio import PortfolioSearch
from fmerge.store import RunFolder

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

SEARCH_SHARE: Final = 0.4
"""Share of a budget after which a search makes way for the stages that train."""

_NOTED = "seconds"
_UNITS: Mapping[str, float] = {"s": 1.0, "min": 60.0, "h": 3600.0}


def seconds_of(budget: str | None) -> float | None:
    """Reads a budget of time.

    Args:
        budget: Such as ``90s``, ``10min`` or ``1h30min``.

    Returns:
        Seconds; None where there is no budget.

    Raises:
        UserError: If it is no time.
    """
    if budget is None:
        return None
    text = str(budget).replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)(s|min|h)", text)
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or total <= 0:
        raise UserError(
            f"--budget: is {budget!r}, but must be a time with its unit, such as 90s, 10min or 1h"
        )
    return total


@dataclass(kw_only=True)
class Clock:
    """The seconds that each part of a run has taken, and how long the parts may take together.

    All processes know the times of the first one, so that they decide alike.

    Attributes:
        trainer: Its strategy broadcasts.
        budget: Seconds for all parts; None for no limit.
        reach: Part to the share of the budget at whose end it stops; all of it when left out.
        spent: Seconds by part, those before an interruption included.
        note: Keeps ``spent`` for when the run is resumed; called in the first process.
        kept: Whether the times are kept, and reported.
        now: Tells the time, in seconds.
    """

    trainer: Trainer
    budget: float | None = None
    reach: Mapping[str, float] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    note: Callable[[Mapping[str, float]], None] = lambda _: None
    kept: bool = True
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.spent = self.trainer.strategy.broadcast(self.spent)
        self._since = self.now()
        self._last: dict[str, float] = {}

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.spent.values())

    def lap(self, part: str) -> None:
        """Adds the time since the last lap to a part.

        Args:
            part: What was done in that time.
        """
        now = self.now()
        taken = self.trainer.strategy.broadcast(now - self._since)
        self._since = now
        self._last[part] = taken
        self.spent[part] = self.spent.get(part, 0.0) + taken
        if self.trainer.is_global_zero and self.kept:
            self.note(self.spent)

    def over(self, part: str) -> bool:
        """Tells whether a part has no time for as much as its last lap took.

        Args:
            part: The part.

        Returns:
            Whether it must stop; never where there is no budget.
        """
        if self.budget is None:
            return False
        return self.total + self._last.get(part, 0.0) > self.reach.get(part, 1.0) * self.budget

    def check_first(self, trials: int) -> None:
        """Refuses a budget that one trial spends.

        Args:
            trials: How many there are.

        Raises:
            UserError: If there is one, and no time is left.
        """
        if self.budget is not None and trials == 1 and self.total > self.budget:
            raise UserError(
                f"--budget: is {self.budget:g} s, but the first trial alone took "
                f"{self.total:.1f} s; give several times as much, or leave it out"
            )


def clock_of(run: "MergeRun", folder: RunFolder) -> Clock:
    """Makes the clock of a run, or continues that of an interrupted one.

    Args:
        run: The merge.
        folder: Its folder, where the times are kept of a run that has a budget or is reported by
            parts.

    Returns:
        The clock.
    """
    kept = run.budget is not None or len(run.members) > 1
    first = run.trainer.is_global_zero and kept
    training = [stage.name for stage in run.stages if stage.improves]
    share = (1 - SEARCH_SHARE) / max(len(training), 1)
    reach = {name: SEARCH_SHARE + share * (i + 1) for i, name in enumerate(training)}
    if training:
        reach |= dict.fromkeys(("race", "search"), SEARCH_SHARE)
    return Clock(
        trainer=run.trainer,
        budget=run.budget,
        reach=reach,
        spent=dict(folder.noted(_NOTED) or {}) if first else {},
        note=lambda spent: folder.note(_NOTED, spent),
        kept=kept,
    )


def _part(search: Search) -> str:
    racing = isinstance(search, PortfolioSearch) and len(search.history) < len(search.usual)
    return "race" if racing else "search"


def watch(search: Search, clock: Clock, closed: bool) -> None:
    """Lets a search end when its share of the budget is spent.

    Args:
        search: The search.
        clock: The clock.
        closed: Whether stages after it have begun, before an interruption.
    """

    def late() -> str:
        if clock.budget is None or not search.history:  # one trial is made in any case
            return ""
        return "its share of --budget is spent" if closed or clock.over(_part(search)) else ""

    search.late = late


def timed(score: Score, search: Search, clock: Clock) -> Score:
    """Takes the time of each trial.

    Args:
        score: Scores a trial, on all processes.
        search: The search that makes it.
        clock: The clock.

    Returns:
        The same, timed.
    """

    def scored(body: Params) -> Scores:
        found = score(body)
        clock.lap(_part(search))
        return found

    return scored


def checked(stop: Callable[[], int], search: Search, clock: Clock) -> Callable[[], int]:
    """Refuses a budget that the first trial spends, before the second begins.

    Args:
        stop: Tells the number of the signal that asked to stop, or 0.
        search: The search.
        clock: The clock.

    Returns:
        What tells it too.
    """

    def asked() -> int:
        clock.check_first(len(search.history))
        return stop()

    return asked
