"""Writes a merge's report: tables to the terminal, documents and pictures to its folder."""

import json
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from fmerge.report.html import html
from fmerge.report.markdown import points
from fmerge.report.merge_report import MergeReport
from fmerge.report.pareto_front import FRONT, PICTURE
from fmerge.report.plots import draw_front, draw_search
from fmerge.report.sentences import bounds_met
from fmerge.report.tables import to_rich
from fmerge.store import write_text


def show(report: MergeReport, output: Path) -> None:
    """Prints the tables and writes the report and its pictures.

    Args:
        report: The result.
        output: The run's folder, or that of a trial that was built by its index.
    """
    console, search = Console(), report.search
    if report.rows:
        if not search.built:
            picture = output / "search.png"
            draw_search(search.trials, picture, search.goal, search.measure)
        write_text(output / "scores.json", json.dumps(report.record(), indent=1) + "\n")
        title = f": {search.method}, {search.name}"
        console.print(to_rich(report.scores(title)))
        for one in report.comparisons:
            found = f"{one.name} minus {one.against}: {points(one.mean)} points"
            console.print(found, soft_wrap=True, highlight=False, markup=False)
        ended = [f"search ended before its budget: {search.ended}"] if search.ended else []
        warned = [search.warning] if search.warning else []
        for fact in (*ended, *bounds_met(search), *warned):
            said = fact[0].upper() + fact[1:]
            console.print(said, soft_wrap=True, highlight=False, markup=False)
    if (stages := report.stages()) is not None:
        console.print(to_rich(stages))
    if (front := search.front) is not None:
        write_text(output / FRONT, json.dumps(front.record(), indent=1) + "\n")
        draw_front(search.trials, front.trials, front.objectives, output / PICTURE)
        console.print(to_rich(front.table(), notes=True))
    write_text(output / "report.html", html(report))
    write_text(output / "report.md", report.markdown())  # last: a run that has it is finished
    places = {"Trials": "trials.jsonl", "Merged": "merged/"}
    if search.built:
        del places["Trials"]
    for what, path in places.items():
        console.print(f"{what}: {output / path}", soft_wrap=True, highlight=False, markup=False)
    console.print(Text("Report: ") + linked(output / "report.html"), soft_wrap=True)


def linked(path: Path) -> Text:
    """Writes a path that opens its file on a click, in terminals that have links.

    Args:
        path: The file.

    Returns:
        The path, as a link.
    """
    return Text(str(path), style=Style(link=path.absolute().as_uri()))
