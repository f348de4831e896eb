"""Plots of a search."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fmerge.report.figures import Pen, inline, save, short
from fmerge.search import Trial
from fmerge.search.objective import Objective, shortfalls


def draw_search(
    trials: Sequence[Trial],
    path: Path,
    goal: Objective | None = None,
    measure: str = "accuracy",
) -> None:
    """Draws the objective by trial and the best so far.

    Args:
        trials: In order.
        path: The picture, a PNG.
        goal: What was maximised, and its bounds; the mean without bounds when left out.
        measure: What a mean is of.
    """
    goal = Objective() if goal is None else goal
    save(path, partial(_trace, trials=trials, goal=goal, measure=measure), 6.4, 3.6)


def search_picture(trials: Sequence[Trial], goal: Objective, measure: str, text: str) -> str:
    """Draws the objective by trial and the best so far.

    Args:
        trials: In order.
        goal: What was maximised, and its bounds.
        measure: What a mean is of.
        text: What the picture shows.

    Returns:
        The picture, an ``svg`` element.
    """
    return inline(partial(_trace, trials=trials, goal=goal, measure=measure), "search", text)


def tasks_picture(
    trials: Sequence[Trial], front: Sequence[Trial], best: Trial, measure: str, text: str
) -> str:
    """Draws how the tasks' validation scores go together over the trials.

    Args:
        trials: Trials that were scored on at least two tasks.
        front: The non-dominated ones among them.
        best: The one that was chosen.
        measure: What a score is.
        text: What the picture shows.

    Returns:
        The picture: one task against the other, or a line a trial where there are more.
    """
    dominated = [trial for trial in trials if trial not in front]
    draw = _plane if len(best.metrics) == 2 else _lines
    given = {"dominated": dominated, "front": front, "best": best, "measure": measure}
    return inline(partial(draw, **given), "tasks", text)  # type: ignore[arg-type]


def draw_front(
    trials: Sequence[Trial], front: Sequence[Trial], objectives: Sequence[str], path: Path
) -> None:
    """Draws the first objective against the second, and the Pareto front.

    Args:
        trials: All trials.
        front: Those of the front, the one that was chosen first.
        objectives: The names of the objectives, two at least.
        path: The picture, a PNG.
    """
    save(path, partial(_front, trials=trials, front=front, objectives=objectives), 5.2, 4.2)


def front_picture(
    trials: Sequence[Trial], front: Sequence[Trial], objectives: Sequence[str], text: str
) -> str:
    """Draws the first objective against the second, and the Pareto front.

    Args:
        trials: All trials.
        front: Those of the front, the one that was chosen first.
        objectives: The names of the objectives, two at least.
        text: What the picture shows.

    Returns:
        The picture, an ``svg`` element.
    """
    draw = partial(_front, trials=trials, front=front, objectives=objectives)
    return inline(draw, "front", text)


def said_of(trial: Trial) -> str:
    """Writes what a trial says under the pointer.

    Args:
        trial: The trial.

    Returns:
        Its number, objective, scores and coefficients, at most eight of them.
    """
    named = list(trial.coefficients.items())
    parts = [
        *([] if trial.objective is None else [f"objective {100 * trial.objective:.1f}"]),
        *(f"{task} {100 * score:.1f}" for task, score in trial.metrics.items()),
        *(f"λ {name} {value:.4f}" for name, value in named[:8]),
        *(["…"] if len(named) > 8 else []),
    ]
    kind = f" ({trial.stage or trial.method})" if trial.stage or trial.method else ""
    return "\n".join([f"trial {trial.index}{kind}", *parts])


def _front(
    pen: Pen, trials: Sequence[Trial], front: Sequence[Trial], objectives: Sequence[str]
) -> None:
    first, second = objectives[:2]
    axes, ink = pen.axes, pen.ink

    def places(some: Sequence[Trial]) -> tuple[list[float], list[float]]:
        one, other = ([100 * t.objectives[name] for t in some] for name in (first, second))
        return one, other

    scored = [t for t in trials if t.objectives]
    said = list(map(said_of, scored))
    pen.points(*places(scored), "o", said, color=ink.faint, markersize=4)
    # the steps bound what the front dominates; seen from two of more objectives it has no line
    style = "o-" if len(objectives) == 2 else "o"
    steps: dict[str, Any] = {"color": ink.best, "markersize": 5, "drawstyle": "steps-post"}
    pen.points(*places(front), style, list(map(said_of, front)), label="Pareto front", **steps)
    ring = {"color": "none", "markeredgecolor": ink.text, "markersize": 10}
    axes.plot(*places(front[:1]), "o", label=f"merged: trial {front[0].index}", **ring)
    for trial, x, y in zip(front, *places(front), strict=True):
        offset = {"textcoords": "offset points", "xytext": (5, 5), "fontsize": 7}
        axes.annotate(str(trial.index), (x, y), **offset)
    axes.set_xlabel(f"validation {short(first)}, %")
    axes.set_ylabel(f"validation {short(second)}, %")


def _trace(pen: Pen, trials: Sequence[Trial], goal: Objective, measure: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes, ink = pen.axes, pen.ink
    scored = [t for t in trials if t.status == "ok" and t.objective is not None]
    stopped = [t for t in trials if t.status == "stopped" and t.objective]
    values = [100 * (t.objective or 0.0) for t in scored]
    short_of = [bool(shortfalls(t.metrics, goal.bounds)) for t in scored]
    # nothing is drawn before the first trial that meets the bounds
    met = [math.nan if out else value for value, out in zip(values, short_of, strict=True)]
    best = [max(met[: i + 1], key=lambda v: (v == v, v)) for i in range(len(met))]
    numbers = [t.index for t in scored]

    def points(some: Sequence[Trial], **options: Any) -> None:
        x, y = [t.index for t in some], [100 * (t.objective or 0.0) for t in some]
        pen.points(x, y, "o", list(map(said_of, some)), markersize=4, **options)

    points(scored, color=ink.trial, label="trial")
    axes.step(numbers, best, where="post", color=ink.best, label="best so far")
    if any(short_of):
        out = [trial for trial, one in zip(scored, short_of, strict=True) if one]
        points(out, color=ink.faint, label="below bounds")
    if stopped:
        points(stopped, color=ink.quiet, label="stopped early", markerfacecolor="none")
    failed = [t for t in trials if t.objective is None]
    if failed and values:
        said = [f"trial {t.index}: {t.reason}" for t in failed]
        place = [t.index for t in failed], [min(values)] * len(failed)
        pen.points(*place, "x", said, color=ink.quiet, label="failed")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {measure}, %" if goal.kind == "mean" else f"{goal}, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plane(
    pen: Pen, dominated: Sequence[Trial], front: Sequence[Trial], best: Trial, measure: str
) -> None:
    """One task's score against the other's."""
    first, second = best.metrics
    ink = pen.ink

    def points(some: Sequence[Trial]) -> tuple[list[float], list[float]]:
        return [100 * t.metrics[first] for t in some], [100 * t.metrics[second] for t in some]

    edge = sorted(zip(*points(front), strict=True))
    pen.axes.plot(*zip(*edge, strict=True), "-", color=ink.trial, linewidth=1)
    kinds: tuple[tuple[str, Sequence[Trial], dict[str, Any]], ...] = (
        ("trial", dominated, {"color": ink.faint, "markersize": 4, "marker": "o"}),
        ("non-dominated", front, {"color": ink.trial, "markersize": 5, "marker": "o"}),
        ("chosen", [best], {"color": ink.best, "markersize": 7, "marker": "D"}),
    )
    for label, some, look in kinds:
        pen.points(*points(some), "", list(map(said_of, some)), label=label, **look)
    pen.axes.set_xlabel(f"{short(first)}, validation {measure}, %")
    pen.axes.set_ylabel(f"{short(second)}, validation {measure}, %")


def _lines(
    pen: Pen, dominated: Sequence[Trial], front: Sequence[Trial], best: Trial, measure: str
) -> None:
    """A line a trial over the tasks."""
    axes, ink = pen.axes, pen.ink
    tasks = list(best.metrics)
    kinds = (("trial", dominated, ink.faint, 1.0), ("non-dominated", front, ink.trial, 1.2))
    for label, some, colour, width in (*kinds, ("chosen", [best], ink.best, 2.4)):
        for i, trial in enumerate(some):
            values = [100 * trial.metrics[task] for task in tasks]
            look = {"color": colour, "linewidth": width, "markersize": 3}
            name = None if i else label
            said = [said_of(trial)] * len(tasks)
            pen.points(list(range(len(tasks))), values, "o-", said, label=name, **look)
    label_tasks(axes, tasks)
    axes.set_ylabel(f"validation {measure}, %")


def label_tasks(axes: Any, tasks: Sequence[str]) -> None:
    """Names the tasks below the axes.

    Args:
        axes: Of matplotlib, on which tasks are 0, 1, …
        tasks: Their names.
    """
    slanted = len(tasks) > 4 or max(map(len, tasks)) > 12
    turn = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(len(tasks)), list(map(short, tasks)), **turn)
