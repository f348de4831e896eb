"""What a merge shows at its end: the table in the terminal, report and picture on the disk."""

import json
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from fmerge.markdown import points
from fmerge.picture import draw_search
from fmerge.report import MergeReport
from fmerge.report_html import html
from fmerge.search import Search
from fmerge.store import write_text


def show(report: MergeReport, search: Search, output: Path) -> None:
    """Prints the table and writes report and picture.

    Args:
        report: The result.
        search: The search, with its trials.
        output: The run's folder.
    """
    console = Console()
    if report.rows:
        draw_search(search.history, output / "search.png", report.goal, report.measure)
        write_text(output / "scores.json", json.dumps(report.record(), indent=1) + "\n")
        console.print(report.table())
        for one in report.comparisons:
            found = f"{one.name} minus {one.against}: {points(one.mean)} points"
            console.print(found, soft_wrap=True, highlight=False, markup=False)
    write_text(output / "report.html", html(report, search))
    write_text(output / "report.md", report.markdown())  # last: a run that has it is finished
    for what, path in (("Trials", "trials.jsonl"), ("Merged", "merged/")):
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
