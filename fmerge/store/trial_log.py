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
