"""Test scores of several runs over the same experts, in one table."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fmerge.errors import UserError
from fmerge.report.scores import BASELINES, EXPERTS, MERGE, REFITTED, RUNNER_UP, Row
from fmerge.report.sections import score_table
from fmerge.report.tables import Table, to_rich


def compare(folders: Sequence[Path]) -> Table:
    """Lays out the merges of several runs over the same experts in one table.

    Args:
        folders: Folders that ``fmerge merge`` wrote.

    Returns:
        The baselines, then the merge of each run.

    Raises:
        UserError: If there is no folder, one holds no scores, or the runs have other experts or
            refitted the baselines' heads otherwise.
    """
    if not folders:
        raise UserError("compare: name the folders of the merges to compare")
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
            if REFITTED in name and _is_baseline(name) and row["scores"] != before.scores:
                raise UserError(
                    f"{folder}: its row '{name}' scores otherwise than that of those before it; "
                    "compare merges of one base and one --refit_seed"
                )
    order = sorted(filter(_is_baseline, rows), key=lambda name: BASELINES.index(_kind(name)))
    baselines = [rows.pop(name) for name in order]
    return score_table([*baselines, *rows.values()], f"Test {measure}, %", own=list(rows))


def _among_others(name: str, record: Mapping[str, Any]) -> str:
    """Names a run's row in a table over several runs."""
    if name.startswith(MERGE):
        searched = " for refitted heads" if record.get("refit_heads") == "trials" else ""
        built = f", trial {record['trial']}" if "trial" in record else ""
        merge = f"{record['method']}, {record['search']}"
        if record["search"] == "PortfolioSearch":
            merge = "Auto"  # whose merge may be trained from another than its best method's
        name = f"{merge}{searched}{built}{name.removeprefix(MERGE)}"
    examples = record.get("refit_examples")
    return f"{name} on {examples}" if name.endswith(REFITTED) and examples else name


def _kind(name: str) -> str:
    return name.partition(" on ")[0]


def _is_baseline(name: str) -> bool:
    return _kind(name) in BASELINES


def main(*folders: Path) -> None:
    """Prints the merges of several runs in one table.

    Args:
        folders: Folders that ``fmerge merge`` wrote, with the same experts.
    """
    Console().print(to_rich(compare(folders)))


if __name__ == "__main__":  # the former way; 'fmerge compare' is the same
    try:
        main(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.stderr.write(f"fmerge: error: {error}\n")
        sys.exit(2)
