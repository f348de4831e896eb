"""Answers of independent parts: classes, several labels, tags of tokens, starts and ends.

Letters: n example, g part of an answer, c candidate of a part, s draw.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fmerge.fisher import Estimator
from fmerge.modules.answers import ABSENT
from fmerge.modules.base import TaskModule


class IndependentAnswers(TaskModule, ABC):
    r"""A module whose answers have parts that are independent given the example.

    .. math::
        \log p(y | x) = \sum_g \log p(y_g | x)

    An answer of G parts of C candidates is one of :math:`C^G`, but the exact Fisher needs GC
    backward passes alone: as the mean of :math:`\partial \log p(y_g | x)` over :math:`y_g` is
    zero, the mixed terms of the square vanish, and

    .. math::
        F = \sum_g \sum_c p(y_g = c | x) (\partial \log p(y_g = c | x) / \partial \theta)^2.

    ``sampled`` takes one pass for each draw of a whole answer, ``empirical`` one.
    """

    @abstractmethod
    def part_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the log-probabilities of each part's candidates.

        Args:
            batch: What ``collate`` made.

        Returns:
            log p (n, g, c), at least float32, −∞ where there is no such candidate, and all −∞
            where an example has no such part.
        """

    @abstractmethod
    def choose(self, log_probs: Tensor, task: str) -> Tensor:
        """Turns log-probabilities into what the metrics compare with the targets.

        Args:
            log_probs: What ``part_log_probs`` gave (n, g, c).
            task: The task's name.

        Returns:
            Predictions (n, …).
        """

    def true_parts(self, batch: Mapping[str, Any]) -> Tensor:
        """Picks the true answer of each part.

        Args:
            batch: What ``collate`` made.

        Returns:
            Candidates (n, g), ``ABSENT`` where an example has no such part.
        """
        labels: Tensor = batch["labels"]
        return labels if labels.ndim == 2 else labels[:, None]

    def lists_answers(self, task: str, estimator: Estimator) -> bool:
        """Tells whether parts are weighted separately, or whole answers are drawn.

        Args:
            task: The task's name.
            estimator: How a Fisher is to be estimated.

        Returns:
            True for ``exact`` and ``rademacher``.
        """
        return estimator in {"exact", "rademacher"}

    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ of given answers, or the log p of every candidate of every part.

        Args:
            batch: What ``collate`` made, with ``answers`` (n, s, g) where they were drawn.

        Returns:
            ℓ (n, s), at least float32; without answers (n, g·c), part by part. Gradients of the
            latter are multiplied by √G, G the number of an example's parts: weights that sum to
            one give each part 1/G, and the Fisher is the sum of all.
        """
        log_probs = self.part_log_probs(batch)
        if "answers" in batch:
            return answer_log_probs(log_probs, batch["answers"])
        if log_probs.shape[1] == 1:
            return log_probs[:, 0]
        return _listed(log_probs)

    def draw_answers(
        self, batch: Mapping[str, Any], estimator: Estimator, uniforms: Tensor
    ) -> Tensor:
        """Draws answers from the model, or takes the true ones.

        Args:
            batch: What ``collate`` made.
            estimator: ``sampled`` or ``empirical``.
            uniforms: Random numbers in [0, 1) (n, s, at least g), one for each part.

        Returns:
            Candidates (n, s, g).
        """
        if estimator == "empirical":
            return self.true_parts(batch)[:, None]
        log_probs = self.part_log_probs(batch)
        cumulative = log_probs.double().cpu().exp().cumsum(dim=2)
        numbers = uniforms[..., : log_probs.shape[1]].transpose(1, 2).contiguous()
        # the sums end at one but for rounding: scaled, no draw lies behind the last candidate
        drawn = torch.searchsorted(cumulative, numbers * cumulative[..., -1:], right=True)
        drawn = drawn.clamp_max(cumulative.shape[2] - 1).to(self.device)
        return drawn.masked_fill(~_present(log_probs)[..., None], ABSENT).transpose(1, 2)

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes losses and predictions.

        Args:
            batch: What ``collate`` made.

        Returns:
            Losses −ℓ of the true answers (n,), and predictions (n, …).
        """
        log_probs = self.part_log_probs(batch)
        losses = -answer_log_probs(log_probs, self.true_parts(batch)[:, None])[:, 0]
        return losses, self.choose(log_probs, batch["task"])


def answer_log_probs(log_probs: Tensor, answers: Tensor) -> Tensor:
    """Adds up the log-probabilities of whole answers.

    Args:
        log_probs: Of each part's candidates (n, g, c).
        answers: Candidates (n, s, g), ``ABSENT`` for parts that do not count.

    Returns:
        Σ log p (n, s).
    """
    there = answers != ABSENT
    chosen = log_probs.gather(2, answers.clamp_min(0).transpose(1, 2)).transpose(1, 2)
    # an absent part has −∞, which times zero would be NaN
    return torch.where(there, chosen, 0.0).sum(dim=2)


def _present(log_probs: Tensor) -> Tensor:
    """Which parts an example has (n, g)."""
    return (log_probs.detach() > -torch.inf).any(dim=2)


def _listed(log_probs: Tensor) -> Tensor:
    """All candidates (n, g·c), with gradients multiplied by √G."""
    every = log_probs.flatten(1)
    roots = _present(log_probs).sum(dim=1, keepdim=True).to(every).sqrt()
    # the same values, with a larger gradient
    scaled = every.detach() + roots * (every - every.detach())
    # -inf - (-inf) is NaN: absent candidates get their -inf again
    return scaled.masked_fill(every.detach() == -torch.inf, -torch.inf)
