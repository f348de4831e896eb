"""The pictures of a search."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmerge.objective import Objective, shortfalls
from fmerge.search import Trial
from fmerge.store import replacing_file


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
    # not pyplot: its global state would pick a window system
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    goal = Objective() if goal is None else goal
    scored = [t for t in trials if t.status == "ok" and t.objective is not None]
    stopped = [
        (t.index, 100 * t.objective) for t in trials if t.status == "stopped" and t.objective
    ]
    values = [100 * (t.objective or 0.0) for t in scored]
    short = [bool(shortfalls(t.metrics, goal.bounds)) for t in scored]
    # nothing is drawn before the first trial that keeps the bounds
    kept = [math.nan if out else value for value, out in zip(values, short, strict=True)]
    best = [max(kept[: i + 1], key=lambda v: (v == v, v)) for i in range(len(kept))]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    numbers = [t.index for t in scored]
    axes.plot(numbers, values, "o", color="#4878a8", markersize=4, label="trial")
    axes.step(numbers, best, where="post", color="#c2542d", label="best so far")
    if any(short):
        out = [(n, v) for n, v, one in zip(numbers, values, short, strict=True) if one]
        axes.plot(*zip(*out, strict=True), "o", color="#c8d6e4", markersize=4, label="below bounds")
    if stopped:
        hollow: dict[str, Any] = {"markerfacecolor": "none", "color": "#a8a8a8", "markersize": 4}
        axes.plot(*zip(*stopped, strict=True), "o", label="stopped early", **hollow)
    failed = [t.index for t in trials if t.objective is None]
    if failed and values:
        axes.plot(failed, [min(values)] * len(failed), "x", color="grey", label="failed")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {measure}, %" if goal.kind == "mean" else f"{goal}, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with replacing_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": "fmerge"})


def draw_front(
    trials: Sequence[Trial], front: Sequence[Trial], objectives: Sequence[str], path: Path
) -> None:
    """Draws the first objective against the second, and the Pareto front.

    Args:
        trials: All trials.
        front: Those of the front, the one that was kept first.
        objectives: The names of the objectives, two at least.
        path: The picture, a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first, second = objectives[:2]

    def places(some: Sequence[Trial]) -> tuple[list[float], list[float]]:
        one, other = ([100 * t.objectives[name] for t in some] for name in (first, second))
        return one, other

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(
        *places([t for t in trials if t.objectives]), "o", color="#c8d6e4", markersize=4,
        label="trial",
    )  # fmt: skip
    # the steps bound what the front dominates; seen from two of more objectives it has no line
    style = "o-" if len(objectives) == 2 else "o"
    axes.plot(
        *places(front), style, color="#c2542d", markersize=5, label="Pareto front",
        drawstyle="steps-post",
    )  # fmt: skip
    axes.plot(
        *places(front[:1]), "o", color="none", markeredgecolor="#333333", markersize=10,
        label=f"merged: trial {front[0].index}",
    )  # fmt: skip
    for trial, x, y in zip(front, *places(front), strict=True):
        axes.annotate(
            str(trial.index), (x, y), textcoords="offset points", xytext=(5, 5), fontsize=7
        )
    axes.set_xlabel(f"validation {first}, %")
    axes.set_ylabel(f"validation {second}, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    with replacing_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": "fmerge"})
