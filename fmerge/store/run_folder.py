"""The folder of a merge, and whether the run in it can be resumed.

The trial log is the state of the search: it is complete after every trial. A run is resumed by
telling the search the trials of the log again, so that nothing else needs to be saved.
"""

import json
import shutil
from collections.abc import Callable, Mapping
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
from fmerge.store.fisher_cache import CACHE_FILE
from fmerge.store.replaced import REPLACED, put_back, recover_replaced, set_aside
from fmerge.store.run_config import TRIALS, first_difference, flat, read_mapping, resolved
from fmerge.store.trial_log import read_trials

_RESULTS = ("report.md", "report.html", "scores.json", "search.png", "pareto.json", "pareto.png")
"""Files of a finished run; the first one makes it finished."""

PARTS = ".merged.parts"
"""Folder of the weights that a merge tensor by tensor has written so far."""

_POINTS, _STAGES = "points", "stages"
_FILES = (*("trials.jsonl", "inputs.json", "times.txt", "config.yaml"), *_RESULTS)
_FOLDERS = ("merged", PARTS, _POINTS, _STAGES)


class RunFolder:
    """The folder of one merge.

    Args:
        path: The folder.
        config: The resolved configuration as YAML; None where it is not known.
        defaults: Name of a section to what a configuration without that section means.
    """

    def __init__(
        self, path: Path, config: str | None = None, defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.defaults = defaults or {}
        self._log = path / "trials.jsonl"
        self.times = path / "times.txt"
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        self._inputs = path / "inputs.json"

    def check(self, overwrite: bool) -> bool:
        """Decides whether a run in the folder is resumed.

        Args:
            overwrite: Whether a run there may be replaced.

        Returns:
            Whether to resume: the run has this configuration and is not finished, or it may make
            more trials now.

        Raises:
            UserError: If the folder holds something else, or a damaged run, and ``overwrite`` is
                off.
        """
        # first of all: a kill between two renames has left the merged weights under another name
        recover_replaced(self.path)
        recover_folder(self.path / "merged")
        begun = self.path / "config.yaml"
        if overwrite or self.config is None or not (self._log.is_file() and begun.is_file()):
            check_new_folder(self.path, overwrite)
            return False
        old, new = self._both(self.config)
        more = old.get(TRIALS) != new.get(TRIALS)
        # more trials are no difference; fewer would have to forget some that were made
        if more and (new.get(TRIALS) or 0) > (old.get(TRIALS) or 0):
            old[TRIALS] = new.get(TRIALS)
        if differs := first_difference(old, new):
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
            UserError: If there is none, it is damaged, or its configuration is another one.
        """
        begun = self.path / "config.yaml"
        if not (self._log.is_file() and begun.is_file() and self._is_finished):
            raise UserError(
                f"--output {self.path}: holds no finished run to build a trial of; give the same "
                "command without --build first"
            )
        if self.config is not None:
            if differs := first_difference(*self._both(self.config)):
                raise UserError(
                    f"--output {self.path}: holds a run with another configuration: {differs}; "
                    "give the command that it was made with, and --build"
                )
        return read_trials(self._log)

    def point(self, index: int) -> Path:
        """Names the folder of a trial that is built by its index.

        Args:
            index: The trial's.

        Returns:
            A folder inside this one.
        """
        return self.path / _POINTS / str(index)

    def begin_point(self, index: int) -> None:
        """Removes the temporary files of a killed run that was building a trial.

        Args:
            index: The trial's.
        """
        for name in _RESULTS:
            remove_leftovers(self.point(index) / name)

    def candidate(self, stage: str) -> Path:
        """Names the file of a stage's best candidate; see ``candidates``.

        Args:
            stage: The stage's name.

        Returns:
            A file inside this folder.
        """
        return self.path / _STAGES / f"{stage}.safetensors"

    def state(self, stage: str) -> Path:
        """Names the file that an interrupted stage is resumed from.

        Args:
            stage: The stage's name.

        Returns:
            A file inside this folder.
        """
        return self.path / _STAGES / f"{stage}-state.safetensors"

    @property
    def _is_finished(self) -> bool:
        return (self.path / _RESULTS[0]).is_file()

    def start(self, inputs: Mapping[str, Any]) -> None:
        """Begins a run: an empty trial log, and nothing of an earlier run.

        A finished run that ``--overwrite`` replaces is set aside: ``settle`` removes it, and
        ``discard`` puts it back.

        Args:
            inputs: Plain values that identify the experts, the base and the data.
        """
        remove_leftovers(self.path / CACHE_FILE)
        if self._is_finished:
            set_aside(self.path, (*_FILES, *_FOLDERS))
        self._remove()  # an unfinished one
        write_text(self._log, "")
        self._describe(inputs)

    def discard(self) -> None:
        """Removes a run that was begun and cannot be finished; its folder too if it is empty."""
        self._remove()
        put_back(self.path)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def settle(self) -> None:
        """Removes the run that this one, which is finished, has replaced."""
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    @property
    def replaces(self) -> bool:
        """Whether a finished run is set aside for this one."""
        return (self.path / REPLACED).is_dir()

    def _remove(self) -> None:
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def check_inputs(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Checks that a run was begun with these experts, base and data.

        Args:
            inputs: As for ``start``.

        Returns:
            What was noted of its inputs.

        Raises:
            UserError: If an expert, the base or the data have changed since.
        """
        noted = read_mapping(self._inputs, json.loads) if self._inputs.is_file() else {}
        before = flat(noted)
        for key, value in flat(inputs).items():
            if key in before and before[key] != value:
                raise UserError(
                    f"--output {self.path}: its run was begun with another {key}; name another "
                    "folder, or add --overwrite true"
                )
        return noted

    def resume(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Resumes a run.

        Args:
            inputs: As for ``start``.

        Returns:
            The records of its finished trials.
        """
        noted = self.check_inputs(inputs)
        # everything is read and checked before anything is written
        records = read_trials(self._log)
        for name in ("trials.jsonl", "inputs.json", "config.yaml", CACHE_FILE, *_RESULTS):
            remove_leftovers(self.path / name)
        # with more trials to make the run is not finished: were it killed now with its report in
        # place, the same command would be refused as finished
        (self.path / _RESULTS[0]).unlink(missing_ok=True)
        # without the half line of a kill, to which the next record would be appended
        write_text(self._log, "".join(json.dumps(record) + "\n" for record in records))
        self._describe({**noted, **inputs})
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a finished trial and waits until it is on the disk.

        Args:
            record: Plain values.
        """
        append_line(self._log, json.dumps(record))
        for tell in self.listeners:
            tell(record)

    def forget(self, count: int) -> None:
        """Shortens the log.

        Args:
            count: How many trials stay, the first ones.
        """
        records = read_trials(self._log)[:count]
        write_text(self._log, "".join(json.dumps(record) + "\n" for record in records))

    def noted(self, key: str) -> Any:
        """Reads back what was noted of this run's inputs.

        Args:
            key: What it was noted under.

        Returns:
            What was noted, perhaps before an interruption; None if nothing was.
        """
        return json.loads(self._inputs.read_text(encoding="utf-8")).get(key)

    def note(self, key: str, value: Any) -> None:
        """Notes what was found out about the inputs, for when the run is resumed.

        Args:
            key: What to note it under.
            value: Plain values.
        """
        inputs = json.loads(self._inputs.read_text(encoding="utf-8"))
        write_text(self._inputs, json.dumps(inputs | {key: value}, indent=1) + "\n")

    def _both(self, config: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configurations of the run in the folder and of the present command."""
        trees = (
            read_mapping(self.path / "config.yaml", yaml.safe_load),
            yaml.safe_load(config) or {},
        )
        old, new = (resolved(tree, self.defaults) for tree in trees)
        return old, new

    def _describe(self, inputs: Mapping[str, Any]) -> None:
        write_text(self._inputs, json.dumps(inputs, indent=1) + "\n")
        if self.config is not None:
            write_text(self.path / "config.yaml", self.config)
