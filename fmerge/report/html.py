"""A merge's report as one HTML file: nothing from the network, all text escaped.

Its one script sorts tables. The page's policy names that script's hash, so that no other can run.
"""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fmerge import __version__
from fmerge.report.evidence_plots import MOST_PANELS, coefficient_picture, scores_picture
from fmerge.report.fisher_tables import fisher_tables
from fmerge.report.headline import own_rows
from fmerge.report.merge_report import MergeReport
from fmerge.report.plots import front_picture, search_picture, tasks_picture
from fmerge.report.search_tables import all_trials, heat_map
from fmerge.report.sections import MOST, coefficient_table, model_table, task_table
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
    scored, searched = bool(report.rows), bool(report.rows) and not search.built
    script = (files("fmerge.report") / "templates" / "sort.js").read_text(encoding="utf-8")
    heat = heat_map(report.best, list(found.experts))
    return (
        _environment()
        .get_template("report.html")
        .render(
            version=__version__,
            script=script,
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
            title=report.title,
            headline=report.headline(),
            facts=report.made(),
            choice=report.choice() if scored else [],
            scores=report.scores() if scored else None,
            scores_picture=_scores(report) if scored else None,
            differences=report.differences(),
            front=search.front.table() if scored and search.front else None,
            pictures=_pictures(report) if searched else [],
            panels=_panels(report) if searched else [],
            non_dominated=report.trade_off() if scored else None,
            trials=all_trials(search) if searched else None,
            stages=report.stages(),
            heat=heat,
            coefficients=None
            if heat is not None and not search.sensitivity
            else coefficient_table(report.best.coefficients, search.sensitivity),
            distances=found.distances.table() if found.distances else None,
            fishers=fisher_tables(found.fishers) if found.fishers else [],
            data=task_table(found.tasks) if found.tasks else None,
            models=model_table(found.models(), digits=16),
            vectors=found.vectors,
            redo=found.redo,
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


def _scores(report: MergeReport) -> tuple[str, str]:
    names = [row.name for row in own_rows(report.tests)]
    text = "The mean test score of each model with its 95% interval, and its score on each task."
    return scores_picture(report.rows, names, report.tests.measure, text), text


def _pictures(report: MergeReport) -> list[tuple[str, str]]:
    """The pictures of the search, with their captions."""
    search, measure = report.search, report.search.measure
    pictures = []
    if search.front is not None:
        text = "Trade-off between the first two objectives."
        given = search.trials, search.front.trials, search.front.objectives
        pictures.append((front_picture(*given, text), text))
    text = "The objective on the validation split, by trial."
    pictures.append((search_picture(search.trials, search.goal, measure, text), text))
    tasks = search.best.metrics.keys()
    scored = [one for one in search.trials if one.status == "ok" and one.metrics.keys() == tasks]
    if len(tasks) > 1 and len(scored) > 1:
        text = "Trade-off between the tasks' validation scores."
        front = search.non_dominated[:MOST]
        pictures.append((tasks_picture(scored, front, search.best, measure, text), text))
    return pictures


def _panels(report: MergeReport) -> list[str]:
    """The objective against each coefficient, those that it depends on most first."""
    search = report.search
    scored = [one for one in search.trials if one.status == "ok" and not one.stage]
    tried = {name: {one.coefficients.get(name) for one in scored} for name in _coefficients(report)}
    names = [name for name, values in tried.items() if len(values - {None}) > 1]
    order = sorted(names, key=lambda name: -search.sensitivity.get(name, 0.0))[:MOST_PANELS]
    return [
        coefficient_picture(
            *(name, number, [one for one in scored if name in one.coefficients], search.best),
            belief=search.beliefs.get(name, ()),
            bounded=search.bounded,
        )
        for number, name in enumerate(order)
    ]


def _coefficients(report: MergeReport) -> list[str]:
    return list(dict.fromkeys(name for one in report.trials for name in one.coefficients))


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
