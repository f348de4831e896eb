"""A trial of a search: what was tried, and what it scored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fmerge.search.objective import Partial

Status = Literal["ok", "failed", "stopped"]


@dataclass(frozen=True)
class Trial:
    """One merge that was tried.

    Attributes:
        index: Its position in the search, from 0.
        coefficients: λ by expert, or by ``expert/group``.
        objective: The score to maximise; None where the trial failed.
        metrics: Score by task.
        status: ``failed`` where no finite score came out, ``stopped`` where the scores are
            estimates from a part of the split, after which the trial was pruned.
        reason: Why it failed.
        error: Standard error of the objective, in its units, where it is known.
        errors: Standard error of a task's score, where it is known.
        partial: How much a stopped trial has seen.
        objectives: The objectives by name, where there are several; ``objective`` is the first.
        objective_errors: Their standard errors, where they are known.
        stage: The stage after the search that made it, such as ``learn``; empty for the search's.
        method: Its method, where a search chooses among several.
    """

    index: int
    coefficients: Mapping[str, float]
    objective: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: Status = "ok"
    reason: str = ""
    error: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    partial: Partial | None = None
    objectives: Mapping[str, float] = field(default_factory=dict)
    objective_errors: Mapping[str, float] = field(default_factory=dict)
    stage: str = ""
    method: str = ""

    def as_record(self) -> dict[str, Any]:
        """Lists what the trial log keeps.

        Returns:
            Plain values, in the order they are written in.
        """
        record = {
            "trial": self.index,
            "status": self.status,
            "objective": self.objective,
            "coefficients": dict(self.coefficients),
            "metrics": dict(self.metrics),
        }
        optional = {
            "error": self.error,
            "errors": dict(self.errors),
            "objectives": dict(self.objectives),
            "objective_errors": dict(self.objective_errors),
            "reason": self.reason,
            "stage": self.stage,
            "method": self.method,
        }
        if self.partial is not None:
            optional["partial"] = asdict(self.partial)
        return record | {
            key: value for key, value in optional.items() if value not in (None, {}, "")
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Trial":
        """Reads a trial back, to the last digit.

        Args:
            record: What ``as_record`` gave.

        Returns:
            The trial.
        """
        names = ("reason", "error", "errors", "objectives", "objective_errors", "stage", "method")
        return cls(
            index=record["trial"],
            coefficients=record["coefficients"],
            objective=record["objective"],
            metrics=record["metrics"],
            status=record["status"],
            partial=Partial(**record["partial"]) if "partial" in record else None,
            **{name: record[name] for name in names if name in record},
        )
