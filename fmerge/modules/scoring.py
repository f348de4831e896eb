"""Scoring by Lightning's ``validate`` and ``test``: metrics and loss of each task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from fmerge.modules.metrics import make_metric, short_name
from fmerge.store import USUAL_METRICS, kind_of


class ScoredModule(LightningModule, ABC):
    """A module whose tasks are scored by metrics, from losses and predictions of a batch.

    Attributes:
        metrics: Task name to its metrics by name.
        val_loss: The mean loss over all tasks.
        right: Task name to whether each example was right, batch by batch; None unless a caller
            asks for it by setting a dictionary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        # a loss that is NaN stays: torchmetrics would leave it out of the mean, with a warning
        self.val_loss = MeanMetric(nan_strategy=float("nan"))
        self.right: dict[str, list[Tensor]] | None = None

    @abstractmethod
    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes losses and predictions.

        Args:
            batch: One task's batch, on this module's device.

        Returns:
            Losses (n,), and predictions (n,), which metrics compare with the targets.
        """

    def add_metrics(
        self, labels: Mapping[str, Sequence[str]], metrics: Mapping[str, Sequence[str]]
    ) -> None:
        """Makes the metrics of each task.

        Args:
            labels: Task name to the names of its classes, labels or tags, which tell their kind;
                none where they differ by example.
            metrics: Task name to names of metrics; those of ``default_metrics`` where a task is
                not in it.
        """
        self.metrics = nn.ModuleDict({
            task: nn.ModuleDict({
                short_name(name): self.metric_of(name, names)
                for name in metrics.get(task, self.default_metrics(names))
            })
            for task, names in labels.items()
        }).to(self.device)

    def default_metrics(self, labels: Sequence[str]) -> Sequence[str]:
        """Names the metrics of data that name none.

        Args:
            labels: Names of the task's classes, labels or tags, which tell their kind.

        Returns:
            The usual ones of that kind.
        """
        return USUAL_METRICS[kind_of(labels)]

    def metric_of(self, name: str, labels: Sequence[str]) -> Metric:
        """Makes a metric that fits this module's predictions.

        Args:
            name: Its name.
            labels: Names of the task's classes, labels or tags; none where every example has
                candidates of its own.

        Returns:
            The metric.
        """
        return make_metric(name, labels)

    def validation_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds a batch to its task's metrics.

        Args:
            batch: One task's batch.
            batch_idx: The batch's index; required by Lightning.
            dataloader_idx: The loader's index; required by Lightning. The batch names its task.
        """
        self._score(batch)

    def test_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Adds a batch to its task's metrics.

        Args:
            batch: One task's batch.
            batch_idx: The batch's index; required by Lightning.
            dataloader_idx: The loader's index; required by Lightning. The batch names its task.

        Returns:
            ``predictions`` (n,) and the ``targets`` (n,) that the metrics compare them with.
        """
        return {"predictions": self._score(batch), "targets": self.targets(batch)}

    def on_validation_epoch_end(self) -> None:
        """Logs ``<task>/<metric>``, the tasks' mean as ``val/score``, and ``val/loss``."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs ``<task>/<metric>``, the tasks' mean as ``test/score``, and ``test/loss``."""
        self._log_scores("test")

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """Picks what the metrics compare predictions with.

        Args:
            batch: What ``collate`` made.

        Returns:
            The labels (n,).
        """
        labels: Tensor = batch["labels"]
        return labels

    def _score(self, batch: Mapping[str, Any]) -> Tensor:
        losses, predictions = self.outcome(batch)
        self._update_metrics(batch, predictions)
        self.val_loss.update(losses)
        return predictions

    def _update_metrics(self, batch: Mapping[str, Any], predictions: Tensor) -> None:
        targets = self.targets(batch)
        for metric in self.metrics[batch["task"]].values():  # type: ignore[operator]
            metric.update(predictions, targets)
        if self.right is not None:
            self.right.setdefault(batch["task"], []).append(predictions == targets)

    def _log_scores(self, stage: str) -> None:
        scores: dict[str, Tensor] = {}
        tasks = []
        for task, metrics in self.metrics.items():
            own = {
                f"{task}/{name}": metric.compute()
                for name, metric in metrics.items()  # type: ignore[operator]
                if metric.update_called
            }
            if own:
                scores |= own
                tasks.append(torch.stack(list(own.values())).mean())
        loss = self.val_loss.compute()
        # Lightning validates in inference mode: a state made there cannot be added to in a fit
        with torch.inference_mode(False):
            self.val_loss.reset()
            for metrics in self.metrics.values():
                for metric in metrics.values():  # type: ignore[operator]
                    metric.reset()
        self.log_dict({**scores, f"{stage}/loss": loss})
        self.log(f"{stage}/score", torch.stack(tasks).mean(), prog_bar=True)
