"""Networks of one's own: their inputs and answers."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.fisher import Estimator
from fmerge.modules.base import TaskModule
from fmerge.modules.label_answers import LabelAnswers
from fmerge.modules.optimization import Scheduler
from fmerge.modules.own_network import OwnNetwork
from fmerge.store import LabelNames


class OwnModule(OwnNetwork, LabelAnswers, ABC):
    """A network of one's own; a subclass needs ``network``, and mostly ``transform``.

    The answers are classes, several labels or a number, as the data name them. For other answers
    override ``label_log_probs``: loss, scores and Fishers then follow from it.

    Args:
        path: Where the weights are: see ``read``. ``fisher`` and ``merge`` take them from the
            experts; a ``fit`` without it starts from what ``network`` makes.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
    """

    def __init__(
        self,
        path: str | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        scheduler: Scheduler = "linear",
        warmup_fraction: float = 0.1,
    ) -> None:
        super().__init__()
        self.take_options(path, learning_rate, weight_decay, scheduler, warmup_fraction)
        self.save_hyperparameters()
        self._labels: dict[str, Sequence[str]] = {}

    def transform(self, example: Mapping[str, Any]) -> Any:
        """Makes the input of one example.

        Args:
            example: As the task's data give it, with ``text``, ``image`` or fields of its own.

        Returns:
            A tensor, or what torch makes one of, of one shape for all; ``example["inputs"]``
            where it is not overridden.

        Raises:
            UserError: If it is not overridden, and there is no such field.
        """
        if "inputs" not in example:
            raise UserError(
                f"{self._kind}: its examples have {', '.join(example)}, of which no tensor is "
                "known to be made; write transform(self, example), which returns the network's "
                "input"
            )
        return example["inputs"]

    def outputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Runs a task's network on ``batch["inputs"]``.

        Args:
            batch: What ``collate`` made.

        Returns:
            Logits, or means of a regression (n, o), at least float32.

        Raises:
            UserError: If the network gives something else.
        """
        found: Any = self.task_model(batch["task"])(batch["inputs"])
        n, o = len(batch["inputs"]), len(self.label_names(batch["task"]))
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if not isinstance(found, Tensor) or shape != (n, o or found.shape[-1]):
            raise UserError(
                f"{self._kind}: its network gives {shape} for {n} examples of task "
                f"'{batch['task']}', but ({n}, {o or 'outputs'}) is needed; write outputs(self, "
                "batch), or make the network of as many outputs as network(self, outputs) is told"
            )
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def add_metrics(
        self, labels: Mapping[str, Sequence[str]], metrics: Mapping[str, Sequence[str]]
    ) -> None:
        """Makes the metrics of each task, and takes the names of its outputs.

        Args:
            labels: Task name to the names of its classes or labels, which tell their kind.
            metrics: Task name to names of metrics.
        """
        self._labels |= labels
        super().add_metrics(labels, metrics)

    def named_batch(self, batch: Any, task: str) -> Mapping[str, Any]:
        """Takes a batch of a loader of the user's own, which may be a pair (inputs, labels).

        Args:
            batch: A pair of tensors, or see ``TaskModule.named_batch``.
            task: The task's name.

        Returns:
            A batch as of ``collate``.
        """
        if isinstance(batch, list | tuple) and all(isinstance(one, Tensor) for one in batch):
            names = ("inputs", "labels")
            batch = dict(zip(names, batch, strict=False)) if len(batch) == 2 else batch
        return super().named_batch(batch, task)

    def label_names(self, task: str) -> Sequence[str]:
        """Names a task's outputs.

        Args:
            task: The task's name.

        Returns:
            The names in order; none where the data do not tell them.
        """
        return self._labels.get(task, LabelNames())

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Makes a batch of what ``transform`` gives.

        Args:
            examples: Mappings with ``label``.
            task: The task's name.

        Returns:
            ``inputs`` (n, …), ``labels`` (n,) or (n, o), and ``task``.

        Raises:
            UserError: If inputs are no tensors of one shape.
        """
        try:
            inputs = torch.stack([torch.as_tensor(self.transform(one)) for one in examples])
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self._kind}: transform(example) must give tensors of one shape ({reason})"
            ) from error
        labels = torch.tensor([one["label"] for one in examples])
        return {"inputs": inputs, "labels": labels, "task": task}

    @property
    def _lists(self) -> bool:
        """Whether a subclass gives log-likelihoods of its own."""
        return type(self).label_log_probs is not OwnModule.label_log_probs

    def lists_answers(self, task: str, estimator: Estimator) -> bool:
        """Tells whether all answers are listed, as those of one's own ``label_log_probs`` are.

        Args:
            task: The task's name.
            estimator: How a Fisher is estimated.

        Returns:
            True for classes and one's own answers; see ``LabelAnswers`` for all others.
        """
        return self._lists or super().lists_answers(task, estimator)

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes losses and predictions, from ``label_log_probs`` where that is one's own.

        Args:
            batch: What ``collate`` made.

        Returns:
            Losses (n,), and predictions (n,), or probabilities (n, o) of labels.
        """
        return TaskModule.outcome(self, batch) if self._lists else super().outcome(batch)
