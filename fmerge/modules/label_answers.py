"""What a classifier's outputs are, of texts or images: classes, several labels, or a number.

Letters: n example, o output, s draw.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fmerge.fisher import Estimator
from fmerge.modules.independent import IndependentAnswers
from fmerge.store import Kind, kind_of


class LabelAnswers(IndependentAnswers, ABC):
    """A module whose networks give outputs, of which each task's kind says what they are.

    - classes: one answer of o candidates, of log-probabilities log_softmax(outputs).
    - labels: o independent answers, yes or no; p(yes) = sigmoid(output). A label is predicted
      where that is above one half.
    - number: the answer is a number y, and the only output μ is the mean of a normal distribution
      of variance one: ℓ = −(y − μ)²/2.
    """

    @abstractmethod
    def outputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the outputs of a task's network.

        Args:
            batch: What ``collate`` made.

        Returns:
            Logits, or means of a regression (n, o), at least float32.
        """

    @abstractmethod
    def label_names(self, task: str) -> Sequence[str]:
        """Names a task's outputs.

        Args:
            task: The task's name.

        Returns:
            The names in order, which tell what they are: see ``fmerge.store.kind_of``.
        """

    def kind(self, task: str) -> Kind:
        """Tells what a task's outputs are.

        Args:
            task: The task's name.

        Returns:
            ``classes``, ``labels`` or ``number``.
        """
        return kind_of(self.label_names(task))

    def part_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the log-probabilities of all classes, or of no and yes for each label.

        Args:
            batch: What ``collate`` made.

        Returns:
            log p (n, 1, o) of classes, (n, o, 2) of labels.
        """
        outputs = self.outputs(batch)
        if self.kind(batch["task"]) == "labels":
            return torch.stack([logsigmoid(-outputs), logsigmoid(outputs)], dim=2)
        return outputs.log_softmax(dim=1)[:, None]

    def choose(self, log_probs: Tensor, task: str) -> Tensor:
        """Chooses the likeliest classes; of labels, gives the probability of each.

        Args:
            log_probs: What ``part_log_probs`` gave.
            task: The task's name.

        Returns:
            Classes (n,), or probabilities (n, o).
        """
        if self.kind(task) == "labels":
            return log_probs[..., 1].exp()
        return self.predictions(log_probs[:, 0])

    def lists_answers(self, task: str, estimator: Estimator) -> bool:
        """Tells whether all answers are listed.

        Args:
            task: The task's name.
            estimator: How a Fisher is estimated.

        Returns:
            True for classes; for labels unless answers are ``sampled`` or ``empirical``; False
            for numbers.
        """
        kind = self.kind(task)
        return kind == "classes" or kind == "labels" and super().lists_answers(task, estimator)

    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ of every candidate, or −(y − μ)²/2 for a regression.

        y is the label. Where the batch has ``answers`` r (n, s), y = μ + r with μ held constant,
        so that ∂ℓ/∂θ = r ∂μ/∂θ.

        Args:
            batch: What ``collate`` made.

        Returns:
            ℓ: of classes (n, o); of labels (n, 2o), or (n, s) of given ``answers``; of a
            regression (n, 1) or (n, s).
        """
        if self.kind(batch["task"]) != "number":
            return super().label_log_probs(batch)
        outputs = self.outputs(batch)
        distances = batch["labels"].to(outputs)[:, None] - outputs
        if "answers" in batch:
            # the bracket is zero, and its gradient is that of -μ
            distances = batch["answers"].to(outputs) + (outputs.detach() - outputs)
        log_likelihoods: Tensor = -distances.square() / 2
        return log_likelihoods

    def numbers_per_draw(self, task: str) -> int:
        """Tells how many random numbers one answer needs, at most.

        Args:
            task: The task's name.

        Returns:
            One for each label, at least two.
        """
        return max(2, len(self.label_names(task)))

    def draw_answers(
        self, batch: Mapping[str, Any], estimator: Estimator, uniforms: Tensor
    ) -> Tensor:
        """Draws labels, or chooses the distances r of a regression's answers from its output μ.

        exact and rademacher: r = 1, as the mean of (r ∂μ/∂θ)² over r ~ N(0, 1) is (∂μ/∂θ)²;
        sampled: draws of r; empirical: the distance of the label.

        Args:
            batch: What ``collate`` made.
            estimator: How they are chosen.
            uniforms: Random numbers in [0, 1) (n, s, at least 2), and o for o labels.

        Returns:
            0 or 1 for each label (n, s, o), or r (n, s).
        """
        if self.kind(batch["task"]) != "number":
            return super().draw_answers(batch, estimator, uniforms)
        distances = torch.ones(len(uniforms), 1)
        if estimator == "empirical":
            outputs = self.outputs(batch)
            distances = batch["labels"].to(outputs)[:, None] - outputs
        if estimator == "sampled":
            # the normal quantile of 0 is -infinity
            numbers = uniforms[..., 0].clamp_min(torch.finfo(uniforms.dtype).eps)
            distances = torch.special.ndtri(numbers).float()
        return distances.to(self.device)

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes losses and predictions; those of a regression are (y − μ)²/2 and μ.

        Args:
            batch: What ``collate`` made.

        Returns:
            Losses (n,), and predictions: classes or numbers (n,), or probabilities (n, o).
        """
        if self.kind(batch["task"]) != "number":
            return super().outcome(batch)
        means = self.outputs(batch)[:, 0]
        return (batch["labels"].to(means) - means).square() / 2, means
