"""Test scores in one table: of one run, or of several over the same experts."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmerge.errors import UserError
from fmerge.report.scores import EXPERTS, MERGE, REFERENCES, REFITTED, RUNNER_UP, Row, score_cells


def score_table(rows: Sequence[Row], title: str) -> Table:
    """Lays out test scores for the terminal.

    Args:
        rows: The models compared, the experts among them.
        title: The table's title.

    Returns:
        A rich table: a row a model; a column a task, the mean, and the share kept.
    """
    table = Table(title=title)
    header, *lines = score_cells(rows)
    for i, name in enumerate(header):
        table.add_column(escape(name), justify="right" if i else "left", no_wrap=True)
    for line, row in zip(lines, rows, strict=True):
        quiet = _is_reference(row.name) or row.name.startswith(RUNNER_UP)
        table.add_row(*line, style=None if quiet else "bold")
    return table


def compare(folders: Sequence[Path]) -> Table:
    """Lays out the merges of several runs over the same experts in one table.

    Args:
        folders: Folders that ``fmerge merge`` wrote.

    Returns:
        A rich table: what the merges are measured against, then the best of each run.

    Raises:
        UserError: If there is no folder, one holds no scores, or the runs have other experts or
            refitted the references' heads otherwise.
    """
    if not folders:
        raise UserError("name the folders of the merges to compare")
    rows: dict[str, Row] = {}
    measure = "accuracy"
    for folder in folders:
        path = folder / "scores.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; name folders of merges that were scored")
        record = json.loads(path.read_text(encoding="utf-8"))
        measure = record.get("measure", measure)
        for row in record["rows"]:
            if row["name"].startswith(RUNNER_UP):
                continue  # each run has its own
            name = _among_others(row["name"], record)
            before = rows.setdefault(name, Row(name, row["scores"]))
            if name == EXPERTS and row["scores"] != before.scores:
                raise UserError(f"{folder}: its experts score otherwise than those before it")
            if REFITTED in name and _is_reference(name) and row["scores"] != before.scores:
                raise UserError(
                    f"{folder}: its row '{name}' scores otherwise than that of those before it; "
                    "compare merges of one base and one --refit_seed"
                )
    references = sorted(filter(_is_reference, rows), key=lambda name: REFERENCES.index(_kind(name)))
    ordered = [rows.pop(name) for name in references]
    return score_table([*ordered, *rows.values()], f"Test {measure}, %")


def _among_others(name: str, record: Mapping[str, Any]) -> str:
    """Names a run's row in a table over several runs."""
    if name.startswith(MERGE):
        searched = " for refitted heads" if record.get("refit_heads") == "trials" else ""
        built = f", trial {record['trial']}" if "trial" in record else ""
        name = f"{record['method']}, {record['search']}{searched}{built}{name.removeprefix(MERGE)}"
    examples = record.get("refit_examples")
    return f"{name} on {examples}" if name.endswith(REFITTED) and examples else name


def _kind(name: str) -> str:
    return name.partition(" on ")[0]


def _is_reference(name: str) -> bool:
    return _kind(name) in REFERENCES


def main(*folders: Path) -> None:
    """Prints the merges of several runs in one table.

    Args:
        folders: Folders that ``fmerge merge`` wrote, with the same experts.
    """
    Console().print(compare(folders))


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.stderr.write(f"fmerge: error: {error}\n")
        sys.exit(2)
