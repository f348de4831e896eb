"""The base of all task modules: log-likelihoods of candidate answers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fmerge.errors import UserError, known
from fmerge.fisher import Estimator
from fmerge.modules.scoring import ScoredModule
from fmerge.modules.trainable import check_trainable
from fmerge.params import Params
from fmerge.store import TOKENIZERS, Preprocessors, SavedForm


class TaskModule(ScoredModule, ABC):
    """A module that gives each candidate answer a log-likelihood.

    Loss, predictions, metrics and every Fisher estimator follow from ``label_log_probs``, except
    where the answers are too many to list. A batch is a mapping with ``labels`` (n,) and
    ``task``, the task's name.

    Attributes:
        reads: What makes its inputs and travels with its models: tokenizers, unless a module says
            otherwise.
        forms: Task name to the dtypes, shards and side files that ``save`` gives the task's
            network; ``""`` for those of all others. Set by the command that saves.
    """

    reads: ClassVar[Preprocessors] = TOKENIZERS

    def __init__(self) -> None:
        super().__init__()
        self._seed = 0
        self.forms: Mapping[str, SavedForm] = {}

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

    def named_batch(self, batch: Any, task: str) -> Mapping[str, Any]:
        """Takes a batch of a loader of the user's own.

        Args:
            batch: A mapping of what the network reads, with ``labels`` or ``label`` (n,); or a
                list of examples, of which ``collate`` makes a batch.
            task: The task's name.

        Returns:
            A batch as of ``collate``.

        Raises:
            UserError: If it is something else.
        """
        if isinstance(batch, list) and batch and isinstance(batch[0], Mapping):
            return self.collate(batch, task)
        if not isinstance(batch, Mapping) or not {"labels", "label"} & batch.keys():
            found = f"a {type(batch).__name__}"
            if isinstance(batch, Mapping):
                found = f"a mapping of {known(batch)}"
            raise UserError(
                f"--data: the loader of task '{task}' gives {found}, but {type(self).__name__} "
                "needs a mapping with 'labels', or a list of examples (collate_fn=list)"
            )
        labels = batch["labels" if "labels" in batch else "label"]
        rest = {key: one for key, one in batch.items() if key != "label"}
        return {**rest, "labels": labels, "task": task}

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
        """Adopts networks of one architecture; the tasks share the first one's body.

        Args:
            models: Task name to network.
            tokenizer: The tokenizer they share, or what else makes their inputs.
        """

    def check_preprocessor(self, model: Any, preprocessor: Any, source: str) -> None:
        """Checks that a tokenizer, or what else makes its inputs, fits a network.

        Args:
            model: The network.
            preprocessor: What makes its inputs.
            source: Where the network is from, for errors.
        """
        self.reads.check(model, preprocessor, source)

    @abstractmethod
    def body(self, model: nn.Module) -> Params:
        """Selects the parameters that the tasks share, which are those that a merge merges.

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
            cards: Task name to the model card of its folder; None for no cards.
        """

    def lists_answers(self, task: str, estimator: Estimator) -> bool:
        """Tells whether ``label_log_probs`` lists all answers that an estimator weights.

        Args:
            task: The task's name.
            estimator: How a Fisher is estimated.

        Returns:
            False where they are too many: a Fisher is then a mean over ``draw_answers``.
        """
        return True

    def check_estimator(self, task: str, estimator: Estimator) -> None:
        """Checks that a Fisher can be estimated in a way; it can in every way where not overridden.

        Args:
            task: The task's name.
            estimator: How.
        """

    def numbers_per_draw(self, task: str) -> int:
        """Tells how many random numbers ``draw_answers`` needs for one answer, at most.

        Args:
            task: The task's name.

        Returns:
            The number, which must not depend on the batch: an example's draws would.
        """
        return 2

    def draw_answers(
        self, batch: Mapping[str, Any], estimator: Estimator, uniforms: Tensor
    ) -> Tensor:
        """Chooses the answers over whose squared gradients a Fisher is the mean.

        Required where ``lists_answers`` is False; called in eval mode and without gradients.

        Args:
            batch: What ``collate`` made, on this module's device.
            estimator: How the answers are chosen.
            uniforms: Random numbers in [0, 1), each example's own (n, samples,
                ``numbers_per_draw``).

        Returns:
            Answers (n, c, …), of equal weight.

        Raises:
            NotImplementedError: If all answers are listed.
        """
        raise NotImplementedError(f"{type(self).__name__} lists all answers of a batch")

    def token_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the distribution of each token of answers that are not listed, but are texts.

        Required by the losses ``experts`` and ``entropy`` of such answers.

        Args:
            batch: What ``collate`` made, on this module's device.

        Returns:
            log q (n, s, v), −∞ where an example has no such token.

        Raises:
            NotImplementedError: If answers are no texts.
        """
        raise NotImplementedError(f"{type(self).__name__} writes no texts")

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes the losses and predictions of a batch.

        Args:
            batch: What ``collate`` made, on this module's device.

        Returns:
            Losses −ℓ[n, yₙ] (n,), and predictions (n,), which metrics compare with the targets.
        """
        log_likelihoods = self.label_log_probs(batch)
        losses = nn.functional.nll_loss(log_likelihoods, batch["labels"], reduction="none")
        return losses, self.predictions(log_likelihoods)

    def predictions(self, log_likelihoods: Tensor) -> Tensor:
        """Turns log-likelihoods into what the metrics compare with the labels.

        Args:
            log_likelihoods: ℓ (n, c).

        Returns:
            The likeliest candidates (n,).
        """
        return log_likelihoods.argmax(dim=1)

    def task_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the training loss: the mean of −ℓ[n, yₙ], unless a module overrides it.

        Args:
            batch: One task's batch.

        Returns:
            The loss, a scalar.
        """
        return self.outcome(batch)[0].mean()

    def on_fit_start(self) -> None:
        """Stores the seed of the fit, from which dropout is seeded at every step."""
        for task in self.metrics:  # one for each task
            check_trainable(self.task_model(task), task)
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds dropout by the fit's seed, the process and the step.

        Args:
            batch: The batch; required by Lightning.
            batch_idx: The batch's index; required by Lightning.
        """
        # a checkpoint holds no state of the random numbers: a resumed fit must find the same ones
        # the process too: ranks with one seed would drop the same units
        step = self.trainer.fit_loop.total_batch_idx * self.trainer.world_size
        torch.manual_seed((self._seed * 1_000_003 + step + self.trainer.global_rank) % 2**63)

    def training_step(self, batch: Mapping[str, Mapping[str, Any]], batch_idx: int) -> Tensor:
        """Computes the mean over tasks of their losses.

        Args:
            batch: Task name to its batch.
            batch_idx: The batch's index; required by Lightning.

        Returns:
            The loss, a scalar.
        """
        loss = torch.stack([self.task_loss(one) for one in batch.values()]).mean()
        examples = sum(len(one["labels"]) for one in batch.values())
        self.log("train/loss", loss, prog_bar=True, batch_size=examples)
        return loss
