"""What every task module is: candidate log-likelihoods, and all that follows from them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from fmerge.fisher import Estimator
from fmerge.modules.metrics import make_metric
from fmerge.params import Params


class TaskModule(LightningModule, ABC):
    """A module that gives each candidate answer a log-likelihood.

    Loss, prediction, metrics and every Fisher estimator come from ``label_log_probs`` alone, but
    where answers are too many to be listed. A batch is a mapping with ``labels`` (n,) and
    ``task``, the task's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        self.val_loss = MeanMetric()
        self.right: dict[str, list[Tensor]] | None = None  # of each example, while one asks for it
        self._seed = 0

    @abstractmethod
    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ, the log-likelihood of each candidate answer.

        Args:
            batch: What ``collate`` made, on this module's device; with ``answers`` (n, c, …)
                where ``draw_answers`` chose the candidates.

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

    @abstractmethod
    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> nn.Module:
        """Reads a network of the kind that this module runs, in float32 on the CPU.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
            task: Which of a checkpoint's heads to take, where it has several.
            labels: The task's class names in order; those of the source when None.
            fresh_head: Start a new head where the source has none; otherwise refuse.

        Returns:
            The network.
        """

    @abstractmethod
    def adopt(self, models: Mapping[str, Any], tokenizer: Any) -> None:
        """Takes over networks of one architecture; the tasks share the first one's body.

        Args:
            models: Task name to network.
            tokenizer: The tokenizer they share.
        """

    @abstractmethod
    def body(self, model: nn.Module) -> Params:
        """Picks what the tasks share, and a merge therefore merges.

        Args:
            model: A network that ``read`` gave.

        Returns:
            The shared parameters by their names in ``model``, sharing its memory.
        """

    @abstractmethod
    def save(self, folder: Path, cards: Mapping[str, str] | None = None) -> None:
        """Writes the live networks as Hugging Face folders.

        Args:
            folder: Where.
            cards: Task name to the model card of its folder, if there are any.
        """

    def add_metrics(
        self, labels: Mapping[str, Sequence[str]], metrics: Mapping[str, Sequence[str]]
    ) -> None:
        """Makes the metrics of each task.

        Args:
            labels: Task name to the names of its classes, none where they differ by example.
            metrics: Task name to names of metrics; accuracy where a task is not in it, or
                pearson where its answers are numbers.
        """
        self.metrics = nn.ModuleDict({
            task: nn.ModuleDict({
                name: make_metric(name, len(names))
                for name in metrics.get(task, ("pearson" if len(names) == 1 else "accuracy",))
            })
            for task, names in labels.items()
        }).to(self.device)

    def lists_answers(self, task: str, estimator: Estimator) -> bool:
        """Tells whether ``label_log_probs`` lists all answers that an estimator may weigh.

        Args:
            task: The task's name.
            estimator: How a Fisher is to be estimated.

        Returns:
            False where they are too many: a Fisher is then taken over ``draw_answers``.
        """
        return True

    def draw_answers(
        self, batch: Mapping[str, Any], estimator: Estimator, uniforms: Tensor
    ) -> Tensor:
        """Chooses the answers whose squared gradients a Fisher is the mean of.

        Needed where ``lists_answers`` is False; called in eval mode and without gradients.

        Args:
            batch: What ``collate`` made, on this module's device.
            estimator: How the answers are to be chosen.
            uniforms: Random numbers in [0, 1) (n, samples, 2), each example's own.

        Returns:
            Answers (n, c, …), of equal weight.

        Raises:
            NotImplementedError: If all answers are listed.
        """
        raise NotImplementedError(f"{type(self).__name__} lists all answers of a batch")

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes what a batch costs and what is predicted for it.

        Args:
            batch: What ``collate`` made, on this module's device.

        Returns:
            Losses −ℓ[n, yₙ] (n,), and predictions (n,), which metrics compare with the labels.
        """
        log_likelihoods = self.label_log_probs(batch)
        losses = nn.functional.nll_loss(log_likelihoods, batch["labels"], reduction="none")
        return losses, self.predictions(log_likelihoods)

    def task_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes what training lowers: the mean of −ℓ[n, yₙ], if nothing else is said.

        Args:
            batch: One task's batch.

        Returns:
            The loss, a scalar.
        """
        return self.outcome(batch)[0].mean()

    def on_fit_start(self) -> None:
        """Takes the seed that dropout follows from here on."""
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Makes dropout a function of seed, process and step, so that a resumed fit has the same.

        Args:
            batch: Not used.
            batch_idx: Not used.
        """
        step = self.trainer.fit_loop.total_batch_idx * self.trainer.world_size
        torch.manual_seed((self._seed * 1_000_003 + step + self.trainer.global_rank) % 2**63)

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

    def test_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Adds a batch to its task's metrics.

        Args:
            batch: One task's batch.
            batch_idx: Not used.
            dataloader_idx: Not used: the batch knows its task.

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

    def predictions(self, log_likelihoods: Tensor) -> Tensor:
        """Turns log-likelihoods into what the metrics compare with the labels.

        Args:
            log_likelihoods: ℓ (n, c).

        Returns:
            The likeliest candidates (n,).
        """
        return log_likelihoods.argmax(dim=1)

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
        # states made in inference mode, as validate has it, could not be added to in a later fit
        with torch.inference_mode(False):
            self.val_loss.reset()
            for metrics in self.metrics.values():
                for metric in metrics.values():  # type: ignore[operator]
                    metric.reset()
        self.log_dict({**scores, f"{stage}/loss": loss})
        self.log(f"{stage}/score", torch.stack(tasks).mean(), prog_bar=True)
