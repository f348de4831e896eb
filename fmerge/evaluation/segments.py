"""Training in segments: some steps by the Trainer's own ``fit``, whatever else it is used for."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from torch import Tensor

from fmerge.data import Example
from fmerge.evaluation.evaluator import Evaluator, silent
from fmerge.modules.learner import Learner, TargetPass
from fmerge.modules.losses import TARGETS
from fmerge.params import Params
from fmerge.system.distributed import gather, in_dataset_order

_OPTIONS: Mapping[str, Any] = {
    "callbacks": [],
    "loggers": [],
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "limit_train_batches": 1.0,
}
"""The Trainer's options during a segment: the user's are for fits of experts."""


@dataclass
class Source:
    """One task's examples, in the order in which steps take them.

    Attributes:
        examples: The examples.
        size: How many a step takes, over all processes.
        seed: Seed of the order, which is a new permutation for each pass over the examples.
        targets: What the task's expert says of each example, if it is needed.
    """

    examples: Sequence[Example]
    size: int
    seed: int
    targets: Tensor | None = None
    _orders: dict[int, list[int]] = field(default_factory=dict)

    def positions(self, step: int) -> list[int]:
        """Chooses the examples of a step, which depend on the step and the seed alone.

        Args:
            step: Its index, from 0.

        Returns:
            Positions in ``examples``.
        """
        n, first = len(self.examples), step * self.size
        return [self._order(i // n)[i % n] for i in range(first, first + self.size)]

    def _order(self, number: int) -> list[int]:
        if number not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._orders[number] = torch.randperm(len(self.examples), generator=generator).tolist()
        return self._orders[number]


@dataclass(frozen=True)
class StepBatches:
    """The batches of some steps: this process's share of each.

    Attributes:
        learner: Whose module makes batches of examples.
        sources: Task name to its examples.
        steps: Which steps.
        trainer: The Trainer, which knows the processes.
    """

    learner: Learner
    sources: Mapping[str, Source]
    steps: range
    trainer: Trainer

    def __len__(self) -> int:
        """Counts the steps."""
        return len(self.steps)

    def __iter__(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Yields task name to batch, step by step."""
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        for step in self.steps:
            made = {}
            for task, source in self.sources.items():
                own = source.positions(step)[rank::processes]
                if own:
                    batch = self.learner.module.collate([source.examples[i] for i in own], task)
                    if source.targets is not None:
                        batch[TARGETS] = source.targets[own]
                    made[task] = batch
            yield made


def fit_steps(
    trainer: Trainer, learner: Learner, sources: Mapping[str, Source], steps: range
) -> bool:
    """Trains for some steps.

    Args:
        trainer: The Trainer.
        learner: What is trained; it keeps Adam's state from segment to segment.
        sources: Task name to its examples.
        steps: Which steps.

    Returns:
        Whether all losses and all that was learned stayed finite, on all processes.
    """
    modes = {one: one.training for one in learner.module.modules()}
    batches = StepBatches(learner, sources, steps, trainer)
    learner.losses.clear()
    with _bare(trainer):
        # Lightning's own: the fit of FMergeTrainer saves an expert
        Trainer.fit(trainer, learner, train_dataloaders=batches)
    for one, training in modes.items():
        one.training = training
    return trainer.strategy.reduce_boolean_decision(learner.is_finite, all=True)


@contextmanager
def _bare(trainer: Trainer) -> Iterator[None]:
    """A Trainer for one epoch, without callbacks and loggers; it has its own again on exit."""
    kept = {name: getattr(trainer, name) for name in _OPTIONS}
    loop, said = trainer.fit_loop, logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = said.level
    try:
        said.setLevel(logging.WARNING)  # that the epoch has ended, each time
        for name, value in _OPTIONS.items():
            setattr(trainer, name, value)
        # a loop counts its steps: a new one begins at 0
        trainer.fit_loop = _FitLoop(trainer, min_epochs=None, max_epochs=1)
        yield
    finally:
        said.setLevel(level)
        trainer.fit_loop = loop
        for name, value in kept.items():
            setattr(trainer, name, value)
        trainer.strategy.optimizers = []  # whose state would stay in memory


def targets_of(
    evaluator: Evaluator, task: str, body: Params, examples: int | None, seed: int
) -> Tensor:
    """Computes what a task's expert says of its training examples, by one pass.

    Args:
        evaluator: Runs the pass; its module has the expert's head.
        task: The task.
        body: The expert's body.
        examples: How many examples; all when None.
        seed: Seed of their choice.

    Returns:
        A row an example in the order of ``MultiTask.loaders``, see ``expert_targets``; the same
        on all processes.
    """
    evaluator.write_body(body)
    loader = evaluator.data.loaders("train", [task], examples, seed)[task]
    with silent(evaluator.trainer):
        one = TargetPass(evaluator.module, len(loader.dataset))  # type: ignore[arg-type]
        found = evaluator.trainer.predict(one, dataloaders=loader)
    evaluator.note("score", "train", [task], examples)
    shares = [share for share in gather(evaluator.trainer, found) if share]
    width = max(batch.shape[1] for share in shares for batch in share)
    rows = [torch.cat([_widened(batch, width) for batch in share]) for share in shares]
    return in_dataset_order(rows)


def _widened(batch: Tensor, width: int) -> Tensor:
    missing = width - batch.shape[1]
    return torch.nn.functional.pad(batch, (0, missing), value=-torch.inf)
