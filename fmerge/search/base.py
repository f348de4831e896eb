"""Ask, tell, best: what every search over merging coefficients is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "failed"]


@dataclass(frozen=True)
class Trial:
    """One merge that was tried.

    Attributes:
        index: Its position in the search, from 0.
        coefficients: λ by expert.
        objective: The score to maximise; None where the trial failed.
        metrics: Score by task.
        status: ``failed`` where no finite score came out.
        reason: Why it failed.
    """

    index: int
    coefficients: Mapping[str, float]
    objective: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: Status = "ok"
    reason: str = ""

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
        return record | ({"reason": self.reason} if self.reason else {})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Trial":
        """Reads a trial back, to the last digit.

        Args:
            record: What ``as_record`` gave.

        Returns:
            The trial.
        """
        return cls(
            record["trial"],
            record["coefficients"],
            record["objective"],
            record["metrics"],
            record["status"],
            record.get("reason", ""),
        )


class Search(ABC):
    """Proposes coefficients and is told what they scored. Deterministic for a seed."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.history: list[Trial] = []

    def start(self, names: Sequence[str]) -> None:
        """Begins anew for these experts.

        Args:
            names: The experts, in the order of the coefficients.
        """
        self.names = tuple(names)
        self.history = []

    @property
    @abstractmethod
    def budget(self) -> int:
        """How many trials the search will ask for."""

    @abstractmethod
    def ask(self) -> dict[str, float]:
        """Proposes the next coefficients.

        Returns:
            λ in [0, 1] by expert.
        """

    def tell(self, trial: Trial) -> None:
        """Records what a proposal scored.

        Args:
            trial: The finished trial, with the coefficients that ``ask`` gave.
        """
        self.history.append(trial)

    def replay(self, trial: Trial) -> None:
        """Takes a trial of an interrupted run, so that the search goes on as that would have.

        Args:
            trial: The next finished trial, in order.
        """
        self.tell(trial)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return len(self.history) >= self.budget

    def best(self) -> Trial:
        """Picks the trial with the highest objective, the earliest among equals.

        Returns:
            The best trial so far.

        Raises:
            ValueError: If no trial succeeded.
        """
        scored = [trial for trial in self.history if trial.status == "ok"]
        if not scored:
            raise ValueError(f"none of the {len(self.history)} trials gave a finite score")
        return max(scored, key=lambda trial: (_score(trial), -trial.index))


def _score(trial: Trial) -> float:
    return -math.inf if trial.objective is None else trial.objective
