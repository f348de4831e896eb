"""The Pareto front of a search for several objectives, and the trial that is built from a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmerge.errors import UserError
from fmerge.report.tables import Cell, Column, Line, Table, percent, to_markdown
from fmerge.search import Trial
from fmerge.store import RunFolder

FRONT = "pareto.json"
PICTURE = "pareto.png"


@dataclass(frozen=True)
class Front:
    """The Pareto front: the trials that no other trial dominates.

    Attributes:
        objectives: The names of the objectives.
        trials: The front. The trial that was chosen, the best by the first objective, is first.
    """

    objectives: Sequence[str]
    trials: Sequence[Trial]

    def record(self) -> dict[str, Any]:
        """Lists what ``pareto.json`` holds.

        Returns:
            Plain values.
        """
        return {
            "objectives": list(self.objectives),
            "merged": self.trials[0].index,
            "front": [trial.as_record() for trial in self.trials],
        }

    def table(self) -> Table:
        """Lays out the front.

        Returns:
            A row a trial: its objectives, its scores on the other tasks, its coefficients.
        """
        # a task that is an objective has a column already
        tasks = [task for task in self.trials[0].metrics if task not in self.objectives]
        lines = []
        for i, trial in enumerate(self.trials):
            values = [trial.objectives[name] for name in self.objectives]
            values += [trial.metrics[task] for task in tasks]
            coefficients = ", ".join(f"{n} {v:.4f}" for n, v in trial.coefficients.items())
            cells = [Cell(str(trial.index)), *map(percent, values), Cell(coefficients)]
            lines.append(Line(cells, own=i == 0))
        numbers = map(Column, (*self.objectives, *tasks))
        columns = [Column("trial"), *numbers, Column("coefficients", text=True)]
        note = (
            f"`merged/` holds trial {self.trials[0].index}, the best by {self.objectives[0]}; to "
            "build another trial, repeat the command with --build and the trial's number."
        )
        return Table("Pareto front on validation, %", columns, lines, [note])

    def markdown(self) -> list[str]:
        """Writes the front for ``report.md``.

        Returns:
            Lines of Markdown.
        """
        return [*to_markdown(self.table()), "", f"![Pareto front]({PICTURE})"]


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
    what = "failed" if 0 <= index < len(records) else f"is none of its {len(records)} trials"
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
