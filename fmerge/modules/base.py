"""What every task module is: candidate log-likelihoods, and all that follows from them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class TaskModule(LightningModule, ABC):
    """A module that gives each candidate answer a log-likelihood.

    Loss, prediction, metrics and every Fisher estimator come from ``label_log_probs`` alone. A
    batch is a mapping with ``labels`` (n,) and ``task``, the task's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = nn.ModuleDict()
        self.val_loss = MeanMetric()

    @abstractmethod
    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ, the log-likelihood of each candidate answer.

        Args:
            batch: What ``collate`` made, on this module's device.

        Returns:
            ℓ (n, c), at least float32.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Makes a batch of examples.

        Args:
            examples: n examples as a task's data gives them.
            task: The task's name.

        Returns:
            Tensors with the examples along the first dimension, ``labels`` (n,) and ``task``.
        """

    @abstractmethod
    def task_model(self, task: str) -> nn.Module:
        """Finds the network of one task: the shared body with the task's head.

        Args:
            task: The task's name.

        Returns:
            A module whose parameter names are those of Fisher files and checkpoints.
        """

    def add_metrics(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Makes the metrics of each task.

        Args:
            labels: Task name to the names of its classes.
        """
        for task, names in labels.items():
            # micro: the share of examples that are right; torchmetrics' default averages classes
            self.accuracy[task] = MulticlassAccuracy(len(names), average="micro").to(self.device)

    def task_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes what training lowers: the cross-entropy −ℓ[n, yₙ], if nothing else is said.

        Args:
            batch: One task's batch.

        Returns:
            The mean over the batch, a scalar.
        """
        return nn.functional.nll_loss(self.label_log_probs(batch), batch["labels"])

    def training_step(self, batch: Mapping[str, Mapping[str, Any]], batch_idx: int) -> Tensor:
        """Computes the mean over tasks of their losses.

        Args:
            batch: Task name to its batch.
            batch_idx: Not used.

        Returns:
            The loss, a scalar.
        """
        loss = torch.stack([self.task_loss(one) for one in batch.values()]).mean()
        examples = sum(len(one["labels"]) for one in batch.values())
        self.log("train/loss", loss, prog_bar=True, batch_size=examples)
        return loss

    def validation_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds a batch to its task's metrics.

        Args:
            batch: One task's batch.
            batch_idx: Not used.
            dataloader_idx: Not used: the batch knows its task.
        """
        self._score(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to its task's metrics.

        Args:
            batch: One task's batch.
            batch_idx: Not used.
            dataloader_idx: Not used: the batch knows its task.
        """
        self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs ``<task>/accuracy``, and their mean as ``val/score`` with ``val/loss``."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs ``<task>/accuracy``, and their mean as ``test/score`` with ``test/loss``."""
        self._log_scores("test")

    def _score(self, batch: Mapping[str, Any]) -> None:
        log_likelihoods = self.label_log_probs(batch)
        labels = batch["labels"]
        self.accuracy[batch["task"]].update(log_likelihoods.argmax(dim=1), labels)  # type: ignore[operator]
        losses = nn.functional.nll_loss(log_likelihoods, labels, reduction="none")
        self.val_loss.update(losses)

    def _log_scores(self, stage: str) -> None:
        scores: dict[str, Tensor] = {}
        for task, metric in self.accuracy.items():
            if metric.update_called:
                scores[f"{task}/accuracy"] = metric.compute()  # type: ignore[operator]
        mean = torch.stack(list(scores.values())).mean()
        loss = self.val_loss.compute()
        # states made in inference mode, as validate has it, could not be added to in a later fit
        with torch.inference_mode(False):
            for metric in (*self.accuracy.values(), self.val_loss):
                metric.reset()  # type: ignore[operator]
        self.log_dict({**scores, f"{stage}/loss": loss})
        self.log(f"{stage}/score", mean, prog_bar=True)
