"""The Pareto front of a search for several objectives, and the trial that is built from a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmerge.report.tables import Cell, Column, Line, Table, percent, to_markdown
from fmerge.search import Trial

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
