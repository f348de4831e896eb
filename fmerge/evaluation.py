"""Scores, Fishers and probes of a body, each through a public pass of the Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed

from fmerge.data import MultiTask, Split
from fmerge.errors import UserError
from fmerge.fisher import Estimator, FisherEstimate
from fmerge.modules import FisherPass, HeadInputs, TaskModule, TextClassifier, probe_accuracy
from fmerge.params import Params, write_params


@dataclass
class FisherSettings:
    """How a diagonal Fisher is estimated.

    Attributes:
        estimator: exact: every class, weighted by its probability; sampled: classes drawn from
            the model; empirical: the true class; rademacher: random signs over whole batches.
        split: Split that the examples come from.
        examples: How many examples, chosen at random and then fixed; all of the split if null.
        samples: Draws per example of ``sampled``, backward passes of ``rademacher``.
        seed: Seed of the choice and of the draws.
    """

    estimator: Estimator = "exact"
    split: Split = "train"
    examples: int | None = None
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            UserError: If one is below 1.
        """
        for name, value in (("examples", self.examples), ("samples", self.samples)):
            if value is not None and value < 1:
                raise UserError(f"{name}: is {value}, but a Fisher needs at least 1")


class Evaluator:
    """Runs passes over the tasks' data, on the Trainer's device, precision and processes.

    Args:
        trainer: The Trainer, whose ``validate``, ``test`` and ``predict`` are used.
        module: The task module; its weights are changed by the passes that take a body.
        data: The tasks.
    """

    def __init__(self, trainer: Trainer, module: TaskModule, data: MultiTask) -> None:
        self.trainer = trainer
        self.module = module
        self.data = data
        self._passes: dict[tuple[str, Estimator, int, int], FisherPass] = {}
        data.trainer = trainer
        data.prepare_data()
        data.setup("validate")

    def write_body(self, body: Params) -> None:
        """Copies a body into the live module, whose tasks all share it.

        Args:
            body: Body tensors by name.
        """
        write_params(self.module.task_model(next(iter(self.data.tasks))), body)

    def score(self, body: Params, split: Split, tasks: Sequence[str]) -> dict[str, float]:
        """Scores a body, with each task's own head.

        Args:
            body: Body tensors by name.
            split: ``validation`` or ``test``.
            tasks: Which tasks.

        Returns:
            Task name to accuracy in [0, 1].
        """
        self.write_body(body)
        run = self.trainer.test if split == "test" else self.trainer.validate
        with _silent(self.trainer):
            results = run(self.module, dataloaders=self.data.loaders(split, tasks), verbose=False)
        metrics: dict[str, float] = {key: value for one in results for key, value in one.items()}
        return {task: metrics[f"{task}/accuracy"] for task in tasks}

    def fisher(
        self, task: str, settings: FisherSettings, body: Params | None = None, bar: bool = False
    ) -> FisherEstimate:
        """Estimates a task's diagonal Fisher.

        Args:
            task: The task, whose head is used.
            settings: Estimator and examples.
            body: Where to take it; at the module's present weights when None.
            bar: Whether to show Lightning's progress bar.

        Returns:
            The Fisher over body and head.
        """
        if body is not None:
            self.write_body(body)
        key = (task, settings.estimator, settings.samples, settings.seed)
        if key not in self._passes:
            self._passes[key] = FisherPass(self.module, *key)
        one = self._passes[key]
        self._predict(one, task, settings.split, settings.examples, settings.seed, bar)
        return one.estimate

    def probe(self, module: TextClassifier, task: str, body: Params) -> float:
        """Refits a task's last linear layer on a frozen body.

        Args:
            module: The live module.
            task: The task.
            body: The body whose features are used.

        Returns:
            Accuracy on the test split.
        """
        self.write_body(body)
        splits: tuple[Split, ...] = ("train", "validation", "test")
        return probe_accuracy({
            split: self._gather(self._predict(HeadInputs(module, task), task, split))
            for split in splits
        })

    def _predict(
        self,
        module: LightningModule,
        task: str,
        split: Split,
        examples: int | None = None,
        seed: int = 0,
        bar: bool = False,
    ) -> Any:
        loader = self.data.loaders(split, [task], examples, seed)[task]
        keep = not isinstance(module, FisherPass)
        with _silent(self.trainer, on=not bar):
            return self.trainer.predict(module, dataloaders=loader, return_predictions=keep)

    def _gather(self, outputs: Any) -> list[tuple[Tensor, Tensor]]:
        """Brings the pieces of all processes together, in every process."""
        mine: list[tuple[Tensor, Tensor]] = list(outputs or [])
        if self.trainer.world_size == 1:
            return mine
        parts: list[Any] = [None] * self.trainer.world_size
        distributed.all_gather_object(parts, mine)
        return [piece for part in parts for piece in part]


@contextmanager
def _silent(trainer: Trainer, on: bool = True) -> Iterator[None]:
    """Hides Lightning's own bar during a pass of which there will be many."""
    bar = trainer.progress_bar_callback
    if bar is None or not on:
        yield
        return
    bar.disable()
    try:
        yield
    finally:
        bar.enable()


def mean(scores: Mapping[str, float]) -> float:
    """Averages the tasks' scores, unweighted.

    Args:
        scores: Task name to score.

    Returns:
        Their mean.
    """
    return float(torch.tensor(list(scores.values()), dtype=torch.float64).mean())
