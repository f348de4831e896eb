"""How a merge is trained, what that takes, and what it needs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from fmerge.errors import UserError, check_within
from fmerge.evaluation.passes import Pass, Passes
from fmerge.modules import SpanAnswers
from fmerge.modules.losses import GUIDED, Loss
from fmerge.store import kind_of

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


UNLISTED: Final = (SpanAnswers,)
"""Modules whose answers are not listed, so that two models' probabilities cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a stage trains.

    Attributes:
        loss: What it learns from.
        steps: Steps, at most.
        learning_rate: Adam's.
        examples: Training examples of each task, at most; all if None.
        patience: Checks on the validation split without a better one, after which it stops.
        every: Steps between two checks.
        seed: Seed of the choice and of the order of the examples.
    """

    loss: Loss = "experts"
    steps: int = 100
    learning_rate: float = 0.01
    examples: int | None = 512
    patience: int = 5
    every: int = 10
    seed: int = 0

    def check(self, prefix: str) -> None:
        """Checks the numbers.

        Args:
            prefix: What the options' names begin with, for the message.

        Raises:
            UserError: If one is out of its range.
        """
        check_within(f"{prefix}steps", self.steps, "[1, inf)")
        check_within(f"{prefix}learning_rate", self.learning_rate, "(0, inf)")
        check_within(f"{prefix}patience", self.patience, "[1, inf)")
        if self.examples is not None:
            check_within(f"{prefix}examples", self.examples, "[1, inf)")
        if self.loss not in get_args(Loss):
            raise UserError(
                f"{prefix}loss: is {self.loss!r}, but must be labels, experts, both or entropy"
            )

    def segments(self) -> list[range]:
        """Divides the steps.

        Returns:
            The steps before each check.
        """
        return [
            range(first, min(first + self.every, self.steps))
            for first in range(0, self.steps, self.every)
        ]

    def passes(self, run: "MergeRun", targets: bool = True) -> Passes:
        """Counts the passes of one training, at most.

        Args:
            run: The merge.
            targets: Whether the experts' probabilities must be computed for it.

        Returns:
            How often each is made.
        """
        found, data = Passes(), run.data
        assert data is not None  # else it were refused
        for task in run.ensemble.tasks:
            there = data.size(task, "train", self.examples)
            found[self.step_pass(run, task)] += 1
            validation = Pass("score", task, "validation", data.size(task, "validation"))
            found[validation] += len(self.segments())
            if targets and self.loss in GUIDED:
                found[Pass("score", task, "train", there)] += 1
        return found

    def step_pass(self, run: "MergeRun", task: str) -> Pass:
        """Names the training itself as one pass over its examples.

        Args:
            run: The merge.
            task: The task.

        Returns:
            A pass over steps × batch examples.
        """
        assert run.data is not None
        size = min(run.data.batch_size, run.data.size(task, "train", self.examples))
        return Pass("step", task, "train", self.steps * size)


def check_training(run: "MergeRun", settings: TrainingSettings, option: str) -> None:
    """Checks what every training needs, before any long work.

    Args:
        run: The merge.
        settings: How it trains.
        option: The option that asks for it.

    Raises:
        UserError: If something is missing, or does not fit.
    """
    data = run.data
    if data is None:
        raise UserError(f"{option}: needs data to learn from; give --data")
    if data.automatic:
        raise UserError(
            f"{option}: what is learned depends on --data.batch_size, which is auto; give a number"
        )
    if str(run.trainer.precision) not in {"32-true", "64-true", "bf16-mixed", "32", "64"}:
        raise UserError(
            f"{option}: --trainer.precision is {run.trainer.precision}, which would round what is "
            "learned; use 32-true or bf16-mixed"
        )
    for task in run.ensemble.tasks:
        if not data.tasks[task].has("train"):
            raise UserError(
                f"{option}: task '{task}' has no train split to learn on; give it one, or leave "
                f"{option} out"
            )
        size = data.size(task, "train", settings.examples)
        if size < 1 or min(data.batch_size, size) < run.trainer.world_size:
            raise UserError(
                f"{option}: a step takes {min(data.batch_size, size)} examples of task '{task}', "
                f"but there are {run.trainer.world_size} processes; raise --data.batch_size"
            )
        if settings.loss == "entropy" and kind_of(data.labels[task]) == "number":
            raise UserError(
                f"{option}: loss entropy: task '{task}' has numbers for answers, whose entropy "
                "does not change; use experts or labels"
            )
        if settings.loss != "labels" and isinstance(run.module, UNLISTED):
            raise UserError(
                f"{option}: loss {settings.loss}: compares the probabilities of listed answers, "
                f"which {type(run.module).__name__} does not list; use labels"
            )
