"""Which trial of a finished run is built again."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmerge.errors import UserError, counted
from fmerge.report.pareto_front import FRONT
from fmerge.runs.stages import PLAIN_AVERAGE
from fmerge.store import RunFolder, candidate_trial


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
    good = [record["trial"] for record in records if _can_be_built(record, folder)]
    if index in good:
        return records
    what = f"is not among its {counted(len(records), 'trial')}"
    if 0 <= index < len(records):
        what = "failed"
        if records[index]["status"] == "ok":
            stage = records[index]["stage"]
            what = f"was not kept, as of stage {stage} only what was best so far is,"
    raise UserError(f"--build {index}: {what} in {folder.path}; {_choices(folder, good)}")


def _can_be_built(record: Mapping[str, Any], folder: RunFolder) -> bool:
    """Whether a trial has coefficients to be assembled from, or its weights were kept."""
    kept = record["trial"]
    if (stage := record.get("stage", "")) not in {"", PLAIN_AVERAGE}:
        kept = candidate_trial(folder.candidate(stage))
    return bool(record["status"] == "ok" and kept == record["trial"])


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
