"""Plots of a search."""

import io
import math
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmerge.search import Trial
from fmerge.search.objective import Objective, shortfalls
from fmerge.store import replacing_file


@dataclass(frozen=True)
class Ink:
    """The colours of a plot with a transparent background.

    Attributes:
        text: Letters and axes.
        trial: A trial.
        faint: A dominated trial, or one below its bounds.
        best: The best trial.
    """

    text: str = "black"
    trial: str = "#4878a8"
    faint: str = "#c8d6e4"
    best: str = "#c2542d"


LIGHT = Ink("#1f2328")
DARK = Ink("#e6e8eb", "#7fb0e0", "#3d5168", "#f08a5d")


@dataclass(frozen=True)
class Picture:
    """A picture that needs no file.

    Attributes:
        light: For a light ground, an SVG as a ``data:`` address.
        dark: The same for a dark one.
    """

    light: str
    dark: str


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
    with _figure(6.4, 3.6) as (figure, axes):
        _trace(axes, trials, Objective() if goal is None else goal, measure, Ink())
        _legend(axes)
        with replacing_file(path) as temporary:
            figure.savefig(temporary, dpi=120, metadata={"Software": "fmerge"})


def search_picture(trials: Sequence[Trial], goal: Objective, measure: str) -> Picture:
    """Draws the objective by trial and the best so far.

    Args:
        trials: In order.
        goal: What was maximised, and its bounds.
        measure: What a mean is of.

    Returns:
        The picture.
    """
    return _picture(lambda axes, ink: _trace(axes, trials, goal, measure, ink))


def tasks_picture(
    trials: Sequence[Trial], front: Sequence[Trial], best: Trial, measure: str
) -> Picture:
    """Draws how the tasks' validation scores go together over the trials.

    Args:
        trials: Trials that were scored on at least two tasks.
        front: The non-dominated ones among them.
        best: The one that was chosen.
        measure: What a score is.

    Returns:
        The picture: one task against the other, or a line a trial where there are more.
    """
    two = len(best.metrics) == 2
    dominated = [trial for trial in trials if trial not in front]
    draw = _plane if two else _lines
    return _picture(lambda axes, ink: draw(axes, dominated, front, best, measure, ink))


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
    with _figure(5.2, 4.2) as (figure, axes):
        _front(axes, trials, front, objectives, Ink())
        _legend(axes)
        with replacing_file(path) as temporary:
            figure.savefig(temporary, dpi=120, metadata={"Software": "fmerge"})


def front_picture(
    trials: Sequence[Trial], front: Sequence[Trial], objectives: Sequence[str]
) -> Picture:
    """Draws the first objective against the second, and the Pareto front.

    Args:
        trials: All trials.
        front: Those of the front, the one that was chosen first.
        objectives: The names of the objectives, two at least.

    Returns:
        The picture.
    """
    return _picture(lambda axes, ink: _front(axes, trials, front, objectives, ink))


def _front(
    axes: Any, trials: Sequence[Trial], front: Sequence[Trial], objectives: Sequence[str], ink: Ink
) -> None:
    first, second = objectives[:2]

    def places(some: Sequence[Trial]) -> tuple[list[float], list[float]]:
        one, other = ([100 * t.objectives[name] for t in some] for name in (first, second))
        return one, other

    axes.plot(*places([t for t in trials if t.objectives]), "o", color=ink.faint, markersize=4)
    # the steps bound what the front dominates; seen from two of more objectives it has no line
    style = "o-" if len(objectives) == 2 else "o"
    steps = {"color": ink.best, "markersize": 5, "drawstyle": "steps-post"}
    axes.plot(*places(front), style, label="Pareto front", **steps)
    ring = {"color": "none", "markeredgecolor": ink.text, "markersize": 10}
    axes.plot(*places(front[:1]), "o", label=f"merged: trial {front[0].index}", **ring)
    for trial, x, y in zip(front, *places(front), strict=True):
        offset = {"textcoords": "offset points", "xytext": (5, 5), "fontsize": 7}
        axes.annotate(str(trial.index), (x, y), **offset)
    axes.set_xlabel(f"validation {_short(first)}, %")
    axes.set_ylabel(f"validation {_short(second)}, %")


def _trace(axes: Any, trials: Sequence[Trial], goal: Objective, measure: str, ink: Ink) -> None:
    from matplotlib.ticker import MaxNLocator

    scored = [t for t in trials if t.status == "ok" and t.objective is not None]
    stopped = [
        (t.index, 100 * t.objective) for t in trials if t.status == "stopped" and t.objective
    ]
    values = [100 * (t.objective or 0.0) for t in scored]
    short = [bool(shortfalls(t.metrics, goal.bounds)) for t in scored]
    # nothing is drawn before the first trial that meets the bounds
    met = [math.nan if out else value for value, out in zip(values, short, strict=True)]
    best = [max(met[: i + 1], key=lambda v: (v == v, v)) for i in range(len(met))]
    numbers = [t.index for t in scored]
    axes.plot(numbers, values, "o", color=ink.trial, markersize=4, label="trial")
    axes.step(numbers, best, where="post", color=ink.best, label="best so far")
    if any(short):
        out = [(n, v) for n, v, one in zip(numbers, values, short, strict=True) if one]
        axes.plot(*zip(*out, strict=True), "o", color=ink.faint, markersize=4, label="below bounds")
    if stopped:
        hollow: dict[str, Any] = {"markerfacecolor": "none", "color": "#a8a8a8", "markersize": 4}
        axes.plot(*zip(*stopped, strict=True), "o", label="stopped early", **hollow)
    failed = [t.index for t in trials if t.objective is None]
    if failed and values:
        axes.plot(failed, [min(values)] * len(failed), "x", color="grey", label="failed")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {measure}, %" if goal.kind == "mean" else f"{goal}, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plane(
    axes: Any,
    dominated: Sequence[Trial],
    front: Sequence[Trial],
    best: Trial,
    measure: str,
    ink: Ink,
) -> None:
    """One task's score against the other's."""
    first, second = best.metrics

    def points(some: Sequence[Trial]) -> tuple[list[float], list[float]]:
        return [100 * t.metrics[first] for t in some], [100 * t.metrics[second] for t in some]

    edge = sorted(zip(*points(front), strict=True))
    axes.plot(*zip(*edge, strict=True), "-", color=ink.trial, linewidth=1)
    axes.plot(*points(dominated), "o", color=ink.faint, markersize=4, label="trial")
    axes.plot(*points(front), "o", color=ink.trial, markersize=5, label="non-dominated")
    axes.plot(*points([best]), "D", color=ink.best, markersize=7, label="chosen")
    axes.set_xlabel(f"{_short(first)}, validation {measure}, %")
    axes.set_ylabel(f"{_short(second)}, validation {measure}, %")


def _lines(
    axes: Any,
    dominated: Sequence[Trial],
    front: Sequence[Trial],
    best: Trial,
    measure: str,
    ink: Ink,
) -> None:
    """A line a trial over the tasks."""
    tasks = list(best.metrics)
    kinds = (("trial", dominated, ink.faint, 1.0), ("non-dominated", front, ink.trial, 1.2))
    for label, some, colour, width in (*kinds, ("chosen", [best], ink.best, 2.4)):
        for i, trial in enumerate(some):
            values = [100 * trial.metrics[task] for task in tasks]
            name = None if i else label
            axes.plot(range(len(tasks)), values, color=colour, linewidth=width, label=name)
    slanted = len(tasks) > 4 or max(map(len, tasks)) > 12
    turn = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(len(tasks)), list(map(_short, tasks)), **turn)
    axes.set_ylabel(f"validation {measure}, %")


def _legend(axes: Any) -> None:
    # above the axes: points may be anywhere inside
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _picture(draw: Callable[[Any, Ink], None]) -> Picture:
    made = []
    for ink in (LIGHT, DARK):
        # small, as letters shrink with the picture on a narrow screen
        with _figure(5.2, 3.5, ink.text) as (figure, axes):
            draw(axes, ink)
            _legend(axes)
            file = io.BytesIO()
            plain = {"Date": None, "Creator": None}  # the same picture, the same file
            figure.savefig(file, format="svg", transparent=True, metadata=plain)
        made.append(f"data:image/svg+xml;base64,{b64encode(file.getvalue()).decode()}")
    return Picture(*made)


@contextmanager
def _figure(width: float, height: float, text: str = "black") -> Iterator[tuple[Any, Any]]:
    # not pyplot: its global state would pick a window system
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    # names are the user's: a dollar in them begins no formula
    fixed = {"text.parse_math": False, "svg.hashsalt": "fmerge"}
    with matplotlib.rc_context({**dict.fromkeys(names, text), **fixed}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn for it
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes
