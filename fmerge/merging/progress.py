"""The view of a search while it runs: a bar, and in a terminal its trials as well."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from lightning.pytorch import Trainer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typing_extensions import override

from fmerge.report.tables import Cell, Column, Line, Table, percent, to_rich
from fmerge.search import Search, Trial
from fmerge.search.stopping import level_of

_LAST: Final = 6
"""Trials that the terminal shows, beside the best."""

_MOST_COLUMNS: Final = 5
"""Tasks, and coefficients, that have a column each."""

_LONG: Final = 10
"""Trials without an improvement, at least, after which the view says so."""


class SearchProgress(Progress):
    """A bar below the best trial and the last ones; the bar alone where there is no terminal.

    Args:
        search: The search, whose history grows.
        shown: Whether anything is shown.
        console: Where it is shown; the usual one when left out.
    """

    def __init__(self, search: Search, shown: bool, console: Console | None = None) -> None:
        self.search = search
        self._table: Table | None = None
        super().__init__(
            TextColumn("Searching"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not shown,
        )
        done = len(search.history)
        self.bar = self.add_task("", total=search.budget, completed=done)

    @override
    def get_renderables(self) -> Iterable[RenderableType]:
        if self._table is not None and self.console.is_terminal:
            yield to_rich(self._table)
        yield from super().get_renderables()
        yield Text(self._words())  # a line of its own, which breaks between words

    def show(self) -> None:
        """Shows what the search has found by now."""
        if self.disable:
            return
        search, long = self.search, max(_LONG, self.search.budget // 4)
        # not in get_renderables, which is called ten times a second
        self._table = live_table(search)
        self.update(self.bar, completed=len(search.history))
        if len(search.history) % long or search.finished:
            return
        level, best = level_of(search)
        if level >= long:
            self.say(
                f"No trial in {level} was better than trial {best}; "
                "--optimizer.search_patience ends a search that is level."
            )

    def end(self) -> None:
        """Says why the search made fewer trials than it might have."""
        if not self.disable and (reason := self.search.ended):
            self.say(f"The search ends before its budget: {reason}.")
            self.update(self.bar, total=len(self.search.history))

    def say(self, text: str) -> None:
        """Prints a sentence above the bar, which no width cuts within a word.

        Args:
            text: The sentence.
        """
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _words(self) -> str:
        search = self.search
        if not any(one.status == "ok" and one.objective is not None for one in search.history):
            return "no score yet"
        best = search.best()
        short = ", short of the bounds" if search.rank(best)[0] else ""
        return f"best {best.objective:.4f}{short}"


def live_table(search: Search) -> Table:
    """Lays out the best trial and the last ones.

    Args:
        search: The search, with a trial at least.

    Returns:
        A row a trial, in order; the best is highlighted.
    """
    history = search.history
    scored = [one for one in history if one.status == "ok" and one.objective is not None]
    best = search.best() if scored else None
    shown = history[-_LAST:]
    if best is not None and all(one.index != best.index for one in shown):
        shown = [best, *shown]
    tasks = list(dict.fromkeys(task for one in history for task in one.metrics))
    tasks = tasks if len(tasks) <= _MOST_COLUMNS else []
    names = search.names if len(search.names) <= _MOST_COLUMNS else ()
    columns = [Column("trial"), *([Column("method", text=True)] if search.method else [])]
    columns += [Column("objective"), *map(Column, tasks), *(Column(f"λ {name}") for name in names)]

    def line(trial: Trial) -> Line:
        objective, own = trial.objective, trial.coefficients
        cells = [
            Cell(str(trial.index)),
            *([Cell(trial.method)] if search.method else []),
            Cell(trial.status) if objective is None else percent(objective),
            *(percent(trial.metrics[t]) if t in trial.metrics else Cell("-") for t in tasks),
            *(Cell(f"{own[name]:.3f}") if name in own else Cell("-") for name in names),
        ]
        return Line(cells, own=best is not None and trial.index == best.index)

    title = "Validation scores in %: the best trial in bold, and the last"
    return Table(title, columns, list(map(line, shown)))


@contextmanager
def progress(trainer: Trainer, search: Search) -> Iterator[Callable[[], None]]:
    """Shows a search in the first process.

    Args:
        trainer: The Trainer.
        search: The search.

    Yields:
        What is called after each trial.
    """
    with SearchProgress(search, trainer.is_global_zero) as shown:
        yield shown.show
        shown.end()
