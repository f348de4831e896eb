"""What a merge shows at its end: the table in the terminal, report and picture on the disk."""

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
from fmerge.search import Search
from fmerge.store import write_text


def show(report: MergeReport, search: Search, output: Path) -> None:
    """Prints the table and writes report and picture.

    Args:
        report: The result.
        search: The search, with its trials.
        output: The run's folder, or that of a trial that was built by its index.
    """
    console = Console()
    if report.rows:
        if not report.built:
            draw_search(search.history, output / "search.png", report.goal, report.measure)
        write_text(output / "scores.json", json.dumps(report.record(), indent=1) + "\n")
        console.print(report.table())
        for one in report.comparisons:
            found = f"{one.name} minus {one.against}: {points(one.mean)} points"
            console.print(found, soft_wrap=True, highlight=False, markup=False)
        for fact in report.bounds_kept():
            said = fact[0].upper() + fact[1:]
            console.print(said, soft_wrap=True, highlight=False, markup=False)
    if (front := report.front) is not None:
        write_text(output / FRONT, json.dumps(front.record(), indent=1) + "\n")
        draw_front(search.history, front.trials, front.objectives, output / PICTURE)
        console.print(front.table())
    write_text(output / "report.html", html(report, search))
    write_text(output / "report.md", report.markdown())  # last: a run that has it is finished
    places = {"Trials": "trials.jsonl", "Merged": "merged/"}
    if report.built:
        del places["Trials"]
    for what, path in places.items():
        console.print(f"{what}: {output / path}", soft_wrap=True, highlight=False, markup=False)
    console.print(Text("Report: ") + linked(output / "report.html"), soft_wrap=True)


def linked(path: Path) -> Text:
    """Names a file so that a terminal which can opens it on a click.

    Args:
        path: The file.

    Returns:
        The path, as a link where links are shown.
    """
    return Text(str(path), style=Style(link=path.absolute().as_uri()))
