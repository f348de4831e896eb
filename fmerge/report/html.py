"""A merge's report as one HTML file: no script, nothing from the network, all text escaped."""

import re
from functools import cache
from typing import TYPE_CHECKING

from fmerge import __version__
from fmerge.report import sections
from fmerge.report.merge_report import MergeReport
from fmerge.report.plots import front_picture, search_picture, tasks_picture
from fmerge.report.scores import AVERAGE, MERGE, score_cells
from fmerge.search import Search

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


def html(report: MergeReport, search: Search) -> str:
    """Writes the report.

    Args:
        report: The result.
        search: The search, with its trials.

    Returns:
        HTML that stands alone.
    """
    best = report.best
    scored = [
        trial
        for trial in search.history
        if trial.status == "ok" and trial.metrics.keys() == best.metrics.keys()
    ]
    trace = trade = front = None
    if report.front is not None:
        front = front_picture(search.history, report.front.trials, report.front.objectives)
    if report.rows and not report.built:
        trace = search_picture(search.history, report.goal, report.measure)
    if len(best.metrics) > 1 and len(scored) > 1:
        trade = tasks_picture(scored, report.non_dominated[: sections.MOST], best, report.measure)
    return _template().render(
        report=report,
        version=__version__,
        title=f"{report.method} of {len(report.experts)} experts",
        facts=report.made(),
        choice=report.choice(),
        refitted=report.refitted(),
        tasks=list(report.rows[0].scores) if report.rows else [],
        rows=list(zip(report.rows, score_cells(report.rows)[1:], strict=True))
        if report.rows
        else [],
        own=MERGE if any(row.name == MERGE for row in report.rows) else AVERAGE,
        models=report.models(),
        texts=sections,
        trace=trace,
        trade=trade,
        front=front,
    )


def _points(value: float, signed: bool = False) -> str:
    return f"{100 * value:+.1f}".replace("-", "−") if signed else f"{100 * value:.1f}"


def _marked(text: str) -> "Markup":
    """Sets as code what stands in backticks; all else is text."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=PackageLoader("fmerge.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": _points, "marked": _marked}
    return environment.get_template("report.html")
