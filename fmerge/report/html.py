"""A merge's report as one HTML file: no script, nothing from the network, all text escaped."""

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from fmerge import __version__
from fmerge.report.merge_report import MergeReport
from fmerge.report.plots import Picture, front_picture, search_picture, tasks_picture
from fmerge.report.sections import MOST, coefficient_table, fisher_tables, model_table, task_table
from fmerge.report.tables import MISSING, Table

LONG = 24
"""Characters of a word beyond which it is broken."""

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def html(report: MergeReport) -> str:
    """Writes the report.

    Args:
        report: The result.

    Returns:
        HTML that stands alone.
    """
    search, found = report.search, report.provenance
    scored = bool(report.rows)
    return (
        _environment()
        .get_template("report.html")
        .render(
            version=__version__,
            title=report.title,
            facts=report.made(),
            choice=report.choice() if scored else [],
            scores=report.scores() if scored else None,
            differences=report.differences(),
            front=search.front.table() if scored and search.front else None,
            pictures=_pictures(report) if scored else [],
            trials=report.trade_off() if scored else None,
            stages=report.stages(),
            coefficients=coefficient_table(report.best.coefficients, search.sensitivity),
            fishers=fisher_tables(found.fishers) if found.fishers else [],
            data=task_table(found.tasks) if found.tasks else None,
            models=model_table(found.models(), digits=16),
            vectors=found.vectors,
        )
    )


def to_html(table: Table, level: int = 2) -> str:
    """Renders a table as HTML.

    Args:
        table: The table.
        level: Level of the heading above it.

    Returns:
        The heading, the table, and its notes.
    """
    templates: Any = _environment().get_template("tables.html").module
    return str(templates.show(table, level))


def _pictures(report: MergeReport) -> list[tuple[Picture, str]]:
    """The pictures of the search, with their captions."""
    search, measure = report.search, report.search.measure
    if search.built:  # no search was made
        return []
    pictures = []
    if search.front is not None:
        front = front_picture(search.trials, search.front.trials, search.front.objectives)
        pictures.append((front, "Trade-off between the first two objectives."))
    trace = search_picture(search.trials, search.goal, measure)
    pictures.append((trace, "The objective on the validation split, by trial."))
    tasks = search.best.metrics.keys()
    scored = [one for one in search.trials if one.status == "ok" and one.metrics.keys() == tasks]
    if len(tasks) > 1 and len(scored) > 1:
        trade = tasks_picture(scored, search.non_dominated[:MOST], search.best, measure)
        pictures.append((trade, "Trade-off between the tasks' validation scores."))
    return pictures


def _marked(text: str) -> "Markup":
    """Sets as code what stands in backticks; all else is text."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _typeset(number: str) -> str:
    """Sets a minus as a minus and a lone hyphen, for a missing number, as a dash."""
    return "–" if number == MISSING else re.sub(r"(?<!\w)-(?=\d)", "−", number)


def _is_long(name: str) -> bool:
    """Whether a name has a word that would widen its column beyond the others."""
    return max(map(len, name.split()), default=0) > LONG


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        loader=PackageLoader("fmerge.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": _marked, "typeset": _typeset}
    environment.tests["long"] = _is_long
    return environment
