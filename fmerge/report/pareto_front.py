"""The Pareto front that a search for several objectives ends with, and any trial's way back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from fmerge.errors import UserError
from fmerge.search import Trial
from fmerge.store import RunFolder

FRONT = "pareto.json"
PICTURE = "pareto.png"

_HOW = "any other of them is made by the same command with --build and its trial"


@dataclass(frozen=True)
class Front:
    """The trials that no other one beats in every objective.

    Attributes:
        objectives: The names of the objectives.
        trials: The front, the trial that was kept first: the best by the first objective.
    """

    objectives: Sequence[str]
    trials: Sequence[Trial]

    def record(self) -> dict[str, Any]:
        """Lists what ``pareto.json`` keeps.

        Returns:
            Plain values.
        """
        return {
            "objectives": list(self.objectives),
            "merged": self.trials[0].index,
            "front": [trial.as_record() for trial in self.trials],
        }

    def table(self) -> Table:
        """Lays out the front for the terminal.

        Returns:
            A rich table: a row a trial; its objectives, its tasks' scores, its coefficients.
        """
        header, *rows = self.cells()
        caption = f"merged/ holds trial {self.trials[0].index}; {_HOW}"
        table = Table(title="Pareto front on validation, %", caption=caption)
        for i, name in enumerate(header):
            last = i == len(header) - 1
            table.add_column(name, justify="left" if last else "right", no_wrap=not last)
        for row in rows:
            table.add_row(*row)
        return table

    def markdown(self) -> list[str]:
        """Writes the front for the report.

        Returns:
            Lines of Markdown.
        """
        header, *rows = self.cells()
        return [
            "",
            f"Pareto front on validation, in per cent, of {' and '.join(self.objectives)}:",
            "",
            "| " + " | ".join(header) + " |",
            "|---" * len(header) + "|",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            self.note(),
            "",
            f"![Pareto front]({PICTURE})",
        ]

    def note(self) -> str:
        """Says which trial was kept, and how to get another.

        Returns:
            A sentence, of which only backticks are Markdown.
        """
        return (
            f"`merged/` holds trial {self.trials[0].index}, the best by {self.objectives[0]}; "
            f"{_HOW}."
        )

    def cells(self) -> list[list[str]]:
        """Lays out the front.

        Returns:
            A header and a line a trial.
        """
        # a task that is an objective has a column already
        tasks = [task for task in self.trials[0].metrics if task not in self.objectives]
        lines = [["trial", *self.objectives, *tasks, "coefficients"]]
        for trial in self.trials:
            values = [trial.objectives[name] for name in self.objectives]
            scores = [trial.metrics[task] for task in tasks]
            percent = [f"{100 * value:.1f}" for value in (*values, *scores)]
            coefficients = ", ".join(f"{n} {v:.4f}" for n, v in trial.coefficients.items())
            lines.append([str(trial.index), *percent, coefficients])
        return lines


def find_trial(
    folder: RunFolder, index: int, overwrite: bool = False, dry_run: bool = False
) -> tuple[Mapping[str, Any], int]:
    """Finds the trial of a finished run that shall be built.

    Args:
        folder: The run's folder.
        index: The trial's.
        overwrite: Whether the run shall be replaced, which is refused.
        dry_run: Whether nothing shall be done, which is refused.

    Returns:
        Its record, and how many trials the run had.

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
        return records[index], len(records)
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
