"""A merge's folder: its trial log is the search's state, complete after every trial."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fmerge.errors import UserError
from fmerge.store.atomic import (
    append_line,
    check_new_folder,
    recover_folder,
    remove_leftovers,
    write_text,
)
from fmerge.store.fisher_cache import CACHED

_IGNORED = (
    *("output", "overwrite", "dry_run", "config", "build"),
    *("trainer.callbacks", "trainer.enable_progress_bar"),
)
"""What a run may be gone on with although it differs."""

_GROWING = "optimizer.search.init_args.trials"
_RESULTS = (
    *("report.md", "report.html", "scores.json", "search.png"),
    *("pareto.json", "pareto.png"),
)
_POINTS = "points"


class RunFolder:
    """The folder of one merge.

    Args:
        path: The folder.
        config: The resolved configuration as YAML; None where it is not known.
    """

    def __init__(self, path: Path, config: str | None = None) -> None:
        self.path = path
        self.config = config
        self._log = path / "trials.jsonl"
        self._inputs = path / "inputs.json"

    def check(self, overwrite: bool) -> bool:
        """Finds out what to do about what is in the folder.

        Args:
            overwrite: Whether a run there may be replaced.

        Returns:
            Whether a run there is to be gone on with: it was begun with this configuration and
            is not finished, or may make more trials now.

        Raises:
            UserError: If there is something else, or it is damaged, and ``overwrite`` is off.
        """
        recover_folder(self.path / "merged")
        begun = self.path / "config.yaml"
        if overwrite or self.config is None or not (self._log.is_file() and begun.is_file()):
            check_new_folder(self.path, overwrite)
            return False
        old = _flat(_mapping(begun, yaml.safe_load))
        new = _flat(yaml.safe_load(self.config) or {})
        more = old.get(_GROWING) != new.get(_GROWING)
        if more and (new.get(_GROWING) or 0) > (old.get(_GROWING) or 0):
            old[_GROWING] = new.get(_GROWING)
        if differs := _difference(old, new):
            raise UserError(
                f"--output {self.path}: holds a run with another configuration: {differs}; name "
                "another folder, or add --overwrite true"
            )
        if self._is_finished and not more:
            raise UserError(
                f"--output {self.path}: holds this very run, finished; ask for more trials, name "
                "another folder, or add --overwrite true"
            )
        return True

    def finished(self) -> list[dict[str, Any]]:
        """Reads a finished run of this configuration, and changes nothing.

        Returns:
            The records of its trials.

        Raises:
            UserError: If there is none, it is damaged, or it was made otherwise.
        """
        begun = self.path / "config.yaml"
        if not (self._log.is_file() and begun.is_file() and self._is_finished):
            raise UserError(
                f"--output {self.path}: holds no finished run to build a trial of; give the same "
                "command without --build first"
            )
        if self.config is not None:
            old, new = _mapping(begun, yaml.safe_load), yaml.safe_load(self.config) or {}
            if differs := _difference(_flat(old), _flat(new)):
                raise UserError(
                    f"--output {self.path}: holds a run with another configuration: {differs}; "
                    "give the command that it was made with, and --build"
                )
        return self._records()

    def point(self, index: int) -> Path:
        """Names the place of a trial that is built by its index.

        Args:
            index: The trial's.

        Returns:
            A folder inside this one.
        """
        return self.path / _POINTS / str(index)

    def begin_point(self, index: int) -> None:
        """Removes what kills left of a trial that was being built.

        Args:
            index: The trial's.
        """
        for name in _RESULTS:
            remove_leftovers(self.point(index) / name)

    @property
    def _is_finished(self) -> bool:
        return (self.path / _RESULTS[0]).is_file()

    def start(self, inputs: Mapping[str, Any]) -> None:
        """Begins a run: an empty trial log, and nothing of a run before.

        Args:
            inputs: Plain values that tell the experts, the base and the data from others.
        """
        remove_leftovers(self.path / CACHED)
        for stale in _RESULTS:
            (self.path / stale).unlink(missing_ok=True)  # of the run that --overwrite replaces
        for folder in ("merged", _POINTS):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        write_text(self._log, "")
        self._describe(inputs)

    def check_inputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Proves that a run was begun with these experts, base and data.

        Args:
            inputs: As for ``start``.

        Returns:
            What was noted of its inputs.

        Raises:
            UserError: If the experts, the base or the data are others now.
        """
        noted = _mapping(self._inputs, json.loads) if self._inputs.is_file() else {}
        before = _flat(noted)
        for key, value in _flat(inputs).items():
            if key in before and before[key] != value:
                raise UserError(
                    f"--output {self.path}: its run was begun with another {key}; name another "
                    "folder, or add --overwrite true"
                )
        return noted

    def resume(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Goes on with a run.

        Args:
            inputs: As for ``start``.

        Returns:
            The records of its finished trials.
        """
        noted = self.check_inputs(inputs)
        records = self._records()
        for name in ("trials.jsonl", "inputs.json", "config.yaml", CACHED, *_RESULTS):
            remove_leftovers(self.path / name)
        # with more trials to make, a run that was finished is so no longer
        (self.path / _RESULTS[0]).unlink(missing_ok=True)
        # a kill may have left half a line behind
        write_text(self._log, "".join(json.dumps(record) + "\n" for record in records))
        self._describe({**noted, **inputs})
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a finished trial and waits until it is on the disk.

        Args:
            record: Plain values.
        """
        append_line(self._log, json.dumps(record))

    def noted(self, key: str) -> Any:
        """Reads back what was noted of this run's inputs.

        Args:
            key: What it was noted under.

        Returns:
            What was noted, by this run or before it was interrupted; None if nothing was.
        """
        return json.loads(self._inputs.read_text(encoding="utf-8")).get(key)

    def note(self, key: str, value: Any) -> None:
        """Keeps what was found out about the inputs, for a run that goes on.

        Args:
            key: What to note it under.
            value: Plain values.
        """
        inputs = json.loads(self._inputs.read_text(encoding="utf-8"))
        write_text(self._inputs, json.dumps(inputs | {key: value}, indent=1) + "\n")

    def _describe(self, inputs: Mapping[str, Any]) -> None:
        write_text(self._inputs, json.dumps(inputs, indent=1) + "\n")
        if self.config is not None:
            write_text(self.path / "config.yaml", self.config)

    def _records(self) -> list[dict[str, Any]]:
        # a kill may have cut a letter in two, in the last line, which is not used
        text = self._log.read_bytes().decode(errors="replace")
        whole, _, _ = text.rpartition("\n")
        records: list[dict[str, Any]] = []
        for number, line in enumerate(whole.splitlines()):
            try:
                record = json.loads(line)
                right = isinstance(record, dict) and _is_trial(record, number)
            except (ValueError, RecursionError):
                right = False
            if not right:
                raise UserError(
                    f"{self._log}: line {number + 1} is not the record of trial {number}; mend "
                    "it, or begin anew with --overwrite true"
                )
            records.append(record)
        return records


def _mapping(path: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    try:
        found = parse(path.read_bytes().decode())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _damaged(path, reason) from error
    if found is not None and not isinstance(found, Mapping):
        raise _damaged(path, f"it holds {type(found).__name__}")
    return found or {}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Words the first difference of two configurations that matters; empty if none does."""
    for key in sorted(old.keys() | new.keys()):
        if not key.startswith(_IGNORED) and old.get(key) != new.get(key):
            return f"{key} was {old.get(key)} and is {new.get(key)}"
    return ""


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: is damaged ({reason}); mend it, or begin anew with --overwrite true")


def _is_trial(record: Mapping[str, Any], number: int) -> bool:
    objective, status = record.get("objective"), record.get("status")
    optional = (record.get(key, {}) for key in ("objectives", "objective_errors"))
    numbers = (record.get("coefficients"), record.get("metrics"), *optional)
    return (
        record.get("trial") == number
        and (status in {"ok", "failed"} or (status == "stopped" and _is_partial(record)))
        and (objective is None or _is_number(objective))
        and all(isinstance(one, dict) and all(map(_is_number, one.values())) for one in numbers)
    )


def _is_partial(record: Mapping[str, Any]) -> bool:
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


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value
