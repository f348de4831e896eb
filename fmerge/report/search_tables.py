"""The tables of a search: all its trials, and its coefficients by layer."""

from collections.abc import Mapping, Sequence
from typing import Final

from fmerge.errors import counted
from fmerge.report.parts import SearchOutcome
from fmerge.report.tables import MISSING, Cell, Column, Line, Table, percent
from fmerge.search import Trial
from fmerge.search.parameter_groups import coefficient_name

_MOST_COEFFICIENTS: Final = 24
"""Coefficients that have a column each."""

_MOST_LINES: Final = 100
"""Trials that ``report.md`` lists."""


def all_trials(search: SearchOutcome, timed: bool = True) -> Table | None:
    """Lays out every trial.

    Args:
        search: The search.
        timed: Whether its trials' times are a column, which differ from run to run; the table is
            then of all trials, else of so many as a text can have.

    Returns:
        A row a trial: its objective, its scores by task, its coefficients, its seconds. None where
        there were fewer than two.
    """
    trials = list(search.trials)
    if len(trials) < 2:
        return None
    tasks = list(dict.fromkeys(task for trial in trials for task in trial.metrics))
    names = list(dict.fromkeys(name for trial in trials for name in trial.coefficients))
    listed = names if len(names) <= _MOST_COEFFICIENTS else []
    kinds = any(trial.stage or trial.method for trial in trials)
    seconds = search.seconds if timed else {}

    columns = [
        Column("trial"),
        *([Column("of", text=True)] if kinds else []),
        Column("status", text=True),
        Column("objective"),
        *map(Column, tasks),
        *(Column(f"λ {name}") for name in listed),
        *([Column("seconds")] if seconds else []),
    ]
    shown = trials if timed else trials[:_MOST_LINES]
    notes = []
    if len(shown) < len(trials):
        notes.append(f"The first {len(shown)} of {len(trials)} trials; `trials.jsonl` has all.")
    if len(listed) < len(names):
        notes.append(f"Their {len(names)} coefficients are in `trials.jsonl`.")
    if seconds:
        count, total = len(seconds), sum(seconds.values())
        notes.append(f"{counted(count, 'trial')} took {total:.1f} s, {total / count:.1f} s each.")
    title = "All trials, validation scores in %"
    lines = [
        _line(trial, kinds, tasks, listed, seconds, trial.index == search.best.index)
        for trial in shown
    ]
    return Table(title, columns, lines, notes, sortable=timed)


def _line(
    trial: Trial,
    kinds: bool,
    tasks: Sequence[str],
    names: Sequence[str],
    seconds: Mapping[int, float],
    chosen: bool,
) -> Line:
    kind = " ".join(one for one in (trial.stage, trial.method) if one)
    objective, own = trial.objective, trial.coefficients
    cells = [
        Cell(str(trial.index)),
        *([Cell(kind or "search")] if kinds else []),
        Cell(trial.status),
        Cell(MISSING) if objective is None else percent(objective),
        *(percent(trial.metrics[t]) if t in trial.metrics else Cell(MISSING) for t in tasks),
        *(Cell(f"{own[name]:.4f}") if name in own else Cell(MISSING) for name in names),
    ]
    if seconds:
        known = trial.index in seconds
        cells.append(Cell(f"{seconds[trial.index]:.1f}" if known else MISSING))
    return Line(cells, own=chosen)


def heat_map(best: Trial, experts: Sequence[str]) -> Table | None:
    """Lays out coefficients that groups of tensors have of their own, such as those of layers.

    Args:
        best: The trial that was chosen.
        experts: The experts.

    Returns:
        A row a group, a column an expert, coloured by value; None without groups.
    """
    own = best.coefficients
    begun = [(name, f"{expert}/") for expert in experts for name in own if name not in experts]
    groups = list(dict.fromkeys(n.removeprefix(e) for n, e in begun if n.startswith(e)))
    if len(groups) < 2:
        return None
    values = {(e, g): own.get(coefficient_name(e, g)) for e in experts for g in groups}
    most = max(abs(value) for value in values.values() if value is not None) or 1.0
    lines = [
        Line([
            Cell(group, code=True),
            *(_cell(values[expert, group], most) for expert in experts),
        ])
        for group in groups
    ]
    columns = [Column("tensors", text=True), *map(Column, experts)]
    return Table("Coefficients by group of tensors", columns, lines)


def _cell(value: float | None, most: float) -> Cell:
    return Cell(MISSING) if value is None else Cell(f"{value:.4f}", heat=value / most)
