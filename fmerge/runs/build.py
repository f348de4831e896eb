"""Which trial of a finished run is built again."""

import json
from collections.abc import Sequence
from typing import Any

from fmerge.errors import UserError
from fmerge.report.pareto_front import FRONT
from fmerge.store import RunFolder


def find_trial(
    folder: RunFolder, index: int, overwrite: bool = False, dry_run: bool = False
) -> list[dict[str, Any]]:
    """Checks that a finished run has a trial that can be built.

    Args:
        folder: The run's folder.
        index: The trial's index.
        overwrite: Whether to replace the run, which is refused.
        dry_run: Whether to write nothing, which is refused.

    Returns:
        The records of the run's trials, in order.

    Raises:
        UserError: If the run is not finished, has no such trial, or the trial failed.
    """
    for name, given in {"overwrite": overwrite, "dry_run": dry_run}.items():
        if given:
            raise UserError(
                f"--build: makes a trial of the run that is there, without --{name}; leave one "
                "of the two out"
            )
    records = folder.finished()
    good = [record["trial"] for record in records if record["status"] == "ok"]
    if index in good:
        return records
    what = "failed" if 0 <= index < len(records) else f"is not among its {len(records)} trials"
    raise UserError(f"--build {index}: {what} in {folder.path}; {_choices(folder, good)}")


def _choices(folder: RunFolder, good: Sequence[int]) -> str:
    path = folder.path / FRONT
    if not path.is_file():
        failed = "" if len(good) == good[-1] + 1 else ", but those that failed"
        return f"give one from {good[0]} to {good[-1]}{failed}"
    try:
        front = [one["trial"] for one in json.loads(path.read_text(encoding="utf-8"))["front"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; begin anew with --overwrite true") from error
    return f"the front's are {', '.join(map(str, sorted(front)))}"
