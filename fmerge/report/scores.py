"""The rows of a result: test scores with their intervals, and differences of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmerge.report.confidence import Estimate

BASE, EXPERTS, AVERAGE = "base", "experts", "plain average"
RUNNER_UP, MERGE = "runner-up", "this merge"
REFITTED = ", heads refitted"
"""What follows a row's name where its model has refitted heads."""

REFERENCES = (BASE, BASE + REFITTED, EXPERTS, AVERAGE, AVERAGE + REFITTED)
"""The rows that a merge is measured against, in order."""


@dataclass(frozen=True)
class Row:
    """One model's test scores.

    Attributes:
        name: What the row is.
        scores: Task name to the mean of its metrics, at most 1.
        estimates: The same with 95% confidence intervals, for the tasks where they are known.
        mean: The mean over tasks with its interval, where all of them are.
    """

    name: str
    scores: Mapping[str, float]
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    mean: Estimate | None = None

    def record(self) -> dict[str, Any]:
        """Lists what ``scores.json`` keeps.

        Returns:
            Plain values; in ``intervals`` a score is followed by the ends of its interval.
        """
        intervals = {task: one.ends() for task, one in self.estimates.items()}
        record = {"name": self.name, "scores": dict(self.scores)}
        return record | ({"intervals": intervals} if intervals else {})


@dataclass(frozen=True)
class Comparison:
    """One row minus another, of the very same test examples.

    Attributes:
        name: The row.
        against: The other row.
        differences: By task; None where it is not known.
        mean: That of the means over tasks, where all are known.
    """

    name: str
    against: str
    differences: Mapping[str, Estimate | None]
    mean: Estimate | None

    def record(self) -> dict[str, Any]:
        """Lists what ``scores.json`` keeps.

        Returns:
            Plain values; a difference is followed by the ends of its interval.
        """
        found = {task: one and one.ends() for task, one in self.differences.items()}
        mean = self.mean and self.mean.ends()
        return {"name": self.name, "against": self.against, "differences": found, "mean": mean}


@dataclass(frozen=True)
class TaskFacts:
    """What a task was scored on.

    Attributes:
        kind: Name of its data's class.
        metrics: Names of its metrics.
        sizes: Examples by split.
        sha256: Hash of the validation examples.
    """

    kind: str
    metrics: Sequence[str]
    sizes: Mapping[str, int]
    sha256: str


def score_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Lays out test scores.

    Args:
        rows: The models compared, the experts among them.

    Returns:
        A header and a line a row, each of a name, a cell a task, the mean, and the share kept.
    """
    experts = next(row for row in rows if row.name == EXPERTS).scores
    lines = [["", *experts, "mean", "kept"]]
    for row in rows:
        shares = [row.scores[task] / experts[task] for task in experts if experts[task]]
        kept = f"{100 * sum(shares) / len(shares):.1f}" if shares else "-"
        scores = [row.scores[task] for task in experts]
        percent = [f"{100 * score:.1f}" for score in [*scores, sum(scores) / len(scores)]]
        lines.append([row.name, *percent, kept])
    return lines
