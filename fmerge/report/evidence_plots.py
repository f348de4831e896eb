"""Plots of test scores, and of what the objective depends on."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from fmerge.report.figures import Pen, inline, short
from fmerge.report.plots import said_of
from fmerge.report.scores import EXPERTS, Row
from fmerge.search import Belief, Trial

MOST_PANELS: Final = 12
"""Coefficients that are drawn."""


def scores_picture(rows: Sequence[Row], own: Sequence[str], measure: str, text: str) -> str:
    """Draws the mean test score of each model with its interval, and its score on each task.

    Args:
        rows: The models.
        own: The names of those that are highlighted.
        measure: What a score is.
        text: What the picture shows.

    Returns:
        The picture, an ``svg`` element.
    """
    draw = partial(_scores, rows=rows, own=own, measure=measure)
    return inline(draw, "scores", text, (6.4, 0.9 + 0.34 * len(rows)))


def _scores(pen: Pen, rows: Sequence[Row], own: Sequence[str], measure: str) -> None:
    axes, ink = pen.axes, pen.ink
    experts = next(row for row in rows if row.name == EXPERTS).scores
    means = []
    for y, row in enumerate(rows):
        places = [100 * row.scores[task] for task in experts]
        said = [f"{row.name}\n{task} {one:.1f}" for task, one in zip(experts, places, strict=True)]
        label = None if y else "a task"
        pen.points(
            *(places, [y] * len(places), "o", said),
            color=ink.faint, markersize=4, label=label, zorder=2,
        )  # fmt: skip
        mean = row.mean_over(list(experts))
        ends = (mean, mean) if row.mean is None else (row.mean.low, row.mean.high)
        means.append((100 * mean, *(100 * one for one in ends)))
    for name, colour, some in (
        ("mean over tasks", ink.trial, [y for y, row in enumerate(rows) if row.name not in own]),
        ("this merge", ink.best, [y for y, row in enumerate(rows) if row.name in own]),
    ):
        for y in some:
            axes.plot(means[y][1:], [y, y], "-", color=colour, linewidth=2.5, zorder=3)
        said = [
            f"{rows[y].name}\nmean {means[y][0]:.1f} ({means[y][1]:.1f} to {means[y][2]:.1f})"
            for y in some
        ]
        place = [means[y][0] for y in some], some
        pen.points(*place, "D", said, color=colour, markersize=6, label=name, zorder=4)
    axes.set_yticks(range(len(rows)), [short(row.name, 32) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"test {measure}, %")
    axes.grid(axis="x", color=ink.faint, linewidth=0.5)
    axes.set_axisbelow(True)


def coefficient_picture(
    name: str,
    number: int,
    trials: Sequence[Trial],
    best: Trial,
    *,
    belief: Sequence[Belief] = (),
    bounded: bool = False,
) -> str:
    """Draws the objective against a coefficient.

    Args:
        name: The coefficient's name.
        number: Its number among those that are drawn.
        trials: The trials that were scored in full.
        best: The one that was chosen.
        belief: What the search's model predicts along it; empty without a model.
        bounded: Whether the objective lies in [0, 1], where predictions are then cut.

    Returns:
        The picture, an ``svg`` element.
    """
    text = f"Objective against the coefficient {name}."
    shown = [_predicted(one, bounded) for one in belief]
    draw = partial(_coefficient, name=name, trials=trials, best=best, shown=shown)
    return inline(draw, f"coefficient{number}", text, (3.6, 2.6))


def _predicted(one: Belief, bounded: bool) -> tuple[float, float, float, float]:
    """A coefficient, and the predicted objective with its 95% interval, in per cent."""
    found = [one.mean + sign * 1.96 * one.error for sign in (0, -1, 1)]
    mean, low, high = (min(max(x, 0.0), 1.0) if bounded else x for x in found)
    return one.value, 100 * mean, 100 * low, 100 * high


def _coefficient(
    pen: Pen,
    name: str,
    trials: Sequence[Trial],
    best: Trial,
    shown: Sequence[tuple[float, float, float, float]],
) -> None:
    axes, ink = pen.axes, pen.ink
    if shown:
        x, means, lows, highs = zip(*shown, strict=True)
        axes.fill_between(x, lows, highs, color=ink.trial, alpha=0.18, linewidth=0)
        axes.plot(x, means, "-", color=ink.trial, linewidth=1.2, label="model")

    def points(some: Sequence[Trial], style: str, label: str, colour: str, size: float) -> None:
        places = [t.coefficients[name] for t in some], [100 * (t.objective or 0.0) for t in some]
        said = list(map(said_of, some))
        pen.points(*places, style, said, color=colour, label=label, markersize=size)

    points(trials, "o", "trial", ink.trial, 3.5)
    points([best] if name in best.coefficients else [], "D", "chosen", ink.best, 6)
    axes.set_xlabel(short(name, 32))
    axes.set_ylabel("objective, %")
