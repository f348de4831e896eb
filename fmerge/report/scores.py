"""The rows of a result: test scores with their intervals, and differences of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fmerge.report.confidence import Estimate

BASE, EXPERTS, AVERAGE = "base", "experts", "plain average"
RUNNER_UP, MERGE = "runner-up", "this merge"
REFITTED = ", heads refitted"
"""The end of a row's name if its model has refitted heads."""

BASE_TUNED, BASE_DISTILLED = "base, fine-tuned", "base, distilled"
AVERAGE_TUNED = "plain average, fine-tuned"
TRAINED = (BASE_TUNED, BASE_DISTILLED, AVERAGE_TUNED)
"""Rows that are trained as long as the merge: on the labels, or towards the experts' answers."""

BASELINES = (
    *(BASE, BASE + REFITTED, BASE_TUNED, BASE_DISTILLED),
    *(EXPERTS, AVERAGE, AVERAGE + REFITTED, AVERAGE_TUNED),
)
"""The rows that a merge is compared with, in order."""


@dataclass(frozen=True)
class Row:
    """One model's test scores.

    Attributes:
        name: The model's name in tables.
        scores: Task name to the mean of its metrics, at most 1.
        estimates: The same with 95% confidence intervals, for the tasks where they are known.
        mean: The mean over tasks with its interval, if all of theirs are known.
    """

    name: str
    scores: Mapping[str, float]
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    mean: Estimate | None = None

    def mean_over(self, tasks: Sequence[str]) -> float:
        """Averages the scores.

        Args:
            tasks: The tasks.

        Returns:
            Their mean.
        """
        return sum(self.scores[task] for task in tasks) / len(tasks)

    def retained(self, experts: Mapping[str, float]) -> float | None:
        """Computes the retained share, the mean over tasks t of sₜ / eₜ.

        Args:
            experts: eₜ, the score of each task's expert.

        Returns:
            The mean over the tasks whose expert's score is not 0; None if there are none.
        """
        shares = [self.scores[task] / own for task, own in experts.items() if own]
        return sum(shares) / len(shares) if shares else None

    def record(self) -> dict[str, Any]:
        """Lists what ``scores.json`` holds.

        Returns:
            Plain values; in ``intervals`` a score is followed by the ends of its interval.
        """
        intervals = {task: one.ends() for task, one in self.estimates.items()}
        record = {"name": self.name, "scores": dict(self.scores)}
        return record | ({"intervals": intervals} if intervals else {})


@dataclass(frozen=True)
class Comparison:
    """One row minus another, on the same test examples.

    Attributes:
        name: The row.
        against: The other row.
        differences: Task name to difference; None where it is unknown.
        mean: The difference of the means over tasks, if all are known.
    """

    name: str
    against: str
    differences: Mapping[str, Estimate | None]
    mean: Estimate | None

    def record(self) -> dict[str, Any]:
        """Lists what ``scores.json`` holds.

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
