"""The trial log of a merge: a line of JSON for each finished trial, checked when it is read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmerge.errors import UserError


def read_trials(path: Path) -> list[dict[str, Any]]:
    """Reads the finished trials of a log.

    Args:
        path: The log.

    Returns:
        A record for each trial, in order. A last line without its end is left out: the run was
        killed while it wrote it, and the trial is made again.

    Raises:
        UserError: If a line is not the record of its trial.
    """
    # half a line may end in half a letter: what cannot be decoded is never used
    text = path.read_bytes().decode(errors="replace")
    complete, _, _ = text.rpartition("\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(complete.splitlines()):
        try:
            record = json.loads(line)
            valid = isinstance(record, dict) and _is_trial(record, number)
        except (ValueError, RecursionError):
            valid = False
        if not valid:
            raise UserError(
                f"{path}: line {number + 1} is not the record of trial {number}; mend "
                "it, or begin anew with --overwrite true"
            )
        records.append(record)
    return records


def note_time(path: Path, trial: int, seconds: float) -> None:
    """Notes how long a trial took: apart from the log, which is the same whenever it is made.

    Args:
        path: The file of the times.
        trial: The trial's number.
        seconds: How long.
    """
    with path.open("a", encoding="utf-8") as notes:
        notes.write(f"{trial} {seconds:.3f}\n")


def read_times(path: Path, count: int) -> dict[int, float]:
    """Reads how long trials took.

    Args:
        path: The file that notes it, a line a trial; it may be absent.
        count: How many trials the log has.

    Returns:
        Seconds by trial, of those whose time was noted whole; the last note of a trial counts.
    """
    if not path.is_file():
        return {}
    complete, _, _ = path.read_bytes().decode(errors="replace").rpartition("\n")
    found = [line.split() for line in complete.splitlines()]
    known = {int(one[0]): float(one[1]) for one in found if len(one) == 2 and one[0].isdigit()}
    return {index: known[index] for index in sorted(known) if index < count}


def _is_trial(record: Mapping[str, Any], number: int) -> bool:
    objective, status = record.get("objective"), record.get("status")
    optional = (record.get(key, {}) for key in ("objectives", "objective_errors"))
    numbers = (record.get("coefficients"), record.get("metrics"), *optional)
    return (
        record.get("trial") == number
        and (status in {"ok", "failed"} or (status == "stopped" and _is_partial(record)))
        and (objective is None or _is_number(objective))
        and all(isinstance(record.get(key, ""), str) for key in ("stage", "method"))
        and all(isinstance(one, dict) and all(map(_is_number, one.values())) for one in numbers)
    )


def _is_partial(record: Mapping[str, Any]) -> bool:
    """Whether a trial that was stopped early says on how many examples it was scored."""
    partial = record.get("partial")
    return (
        _is_number(record.get("objective"))
        and isinstance(partial, dict)
        and partial.keys() == {"examples", "of", "error", "errors"}
        and isinstance(errors := partial["errors"], dict)
        and all(map(_is_number, [partial["examples"], partial["of"], partial["error"]]))
        and all(map(_is_number, errors.values()))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
