"""What a merge leaves in its folder and on the terminal, once it is tested and saved."""

import json
from pathlib import Path

from rich.console import Console

from fmerge.pareto import FRONT, PICTURE
from fmerge.picture import draw_front, draw_search
from fmerge.report import MergeReport
from fmerge.search import Search
from fmerge.store import write_text


def show(report: MergeReport, search: Search, output: Path) -> None:
    """Prints the tables and writes report and pictures.

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
    if (front := report.front) is not None:
        write_text(output / FRONT, json.dumps(front.record(), indent=1) + "\n")
        draw_front(search.history, front.trials, front.objectives, output / PICTURE)
        console.print(front.table())
    # last: it tells a finished run
    write_text(output / "report.md", report.markdown())
    places = {"Report": "report.md", "Trials": "trials.jsonl", "Merged": "merged/"}
    if report.built:
        del places["Trials"]
    for what, path in places.items():
        console.print(f"{what}: {output / path}", soft_wrap=True, highlight=False)
