"""What a merge learns from: labels, the experts' own probabilities, or its own certainty.

Letters: n example, c candidate answer; p the expert's probabilities, q the merge's.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
from torch import Tensor

from fmerge.modules.base import TaskModule
from fmerge.modules.independent import IndependentAnswers, answer_log_probs
from fmerge.modules.label_answers import LabelAnswers

Loss = Literal["labels", "experts", "both", "entropy"]
"""labels: −log q of the true answer; experts: KL(p ‖ q); both: their mean; entropy: −Σ q log q."""

GUIDED: Final = frozenset({"experts", "both"})
"""The losses that ask the experts."""

TARGETS = "targets"
"""The key under which a batch holds what the expert says of its examples."""


def expert_targets(module: TaskModule, batch: Mapping[str, Any]) -> Tensor:
    """Computes what an expert says of a batch, for the loss ``experts``.

    Args:
        module: The task module with the expert's weights.
        batch: What ``collate`` made.

    Returns:
        log p (n, c), −∞ where an example has no such candidate; of independent parts, or of a
        text's tokens, (n, g·c);
        of a regression its mean (n, 1).
    """
    if _is_regression(module, batch["task"]):
        return module.outcome(batch)[1][:, None]
    return _part_log_probs(module, batch).flatten(1)


def example_losses(module: TaskModule, batch: Mapping[str, Any], loss: Loss) -> Tensor:
    r"""Computes the loss of each example.

    .. math::
        -\log q_{n y_n}, \quad \sum_c p_{nc} (\log p_{nc} - \log q_{nc}), \quad
        -\sum_c q_{nc} \log q_{nc}

    q is the softmax of ℓ over an example's candidates; losses of independent parts add up,
    and those of the tokens of a text are averaged. A regression's answers are normal of variance
    one: half the squared distance to the label, or to the expert's mean. The ``labels`` of answers
    that are not listed have the loss of ``outcome``.

    Args:
        module: The task module.
        batch: What ``collate`` made, with ``targets`` for the loss ``experts``.
        loss: Which.

    Returns:
        The losses (n,).
    """
    task = batch["task"]
    listed, regression = module.lists_answers(task, "exact"), _is_regression(module, task)
    if regression or (loss == "labels" and not listed):
        losses, means = module.outcome(batch)
        if loss in GUIDED:
            squared = (batch[TARGETS][:, 0].to(means) - means).square() / 2
            losses = (losses + squared) / 2 if loss == "both" else squared
        return losses
    log_q = _part_log_probs(module, batch)
    if loss == "labels":
        return _named(module, log_q, batch)
    log_p = log_q
    if loss in GUIDED:
        log_p = batch[TARGETS][:, : log_q[0].numel()].to(log_q).view_as(log_q)
    there = log_p > -torch.inf
    # an absent candidate adds 0 · (−∞), whose gradient would be NaN
    known_q = torch.where(there, log_q, 0.0)
    p = torch.where(there, log_p, -torch.inf).exp()
    if loss == "entropy":
        losses = -(p * known_q).sum(dim=2).sum(dim=1)
    else:
        losses = (p * (torch.where(there, log_p, 0.0) - known_q)).sum(dim=2).sum(dim=1)
    if not listed:
        losses = losses / there.any(dim=2).sum(dim=1)
    if loss == "both":
        named = _named(module, log_q, batch) if listed else module.outcome(batch)[0]
        losses = (named + losses) / 2
    return losses


def _named(module: TaskModule, log_q: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """−log q of the true answers (n,)."""
    return -answer_log_probs(log_q, _true_parts(module, batch)[:, None])[:, 0]


def _part_log_probs(module: TaskModule, batch: Mapping[str, Any]) -> Tensor:
    """Log-probabilities of each part's candidates (n, g, c): of listed answers, or of tokens."""
    if not module.lists_answers(batch["task"], "exact"):
        return module.token_log_probs(batch)
    if isinstance(module, IndependentAnswers):
        parts = module.part_log_probs(batch)
        # normalised once more, as listed choices are: runs of before are resumed bit for bit
        return parts if parts.shape[1] > 1 else parts.log_softmax(dim=2)
    return module.label_log_probs(batch).log_softmax(dim=1)[:, None]


def _true_parts(module: TaskModule, batch: Mapping[str, Any]) -> Tensor:
    if isinstance(module, IndependentAnswers):
        return module.true_parts(batch)
    labels: Tensor = batch["labels"]
    return labels[:, None]


def _is_regression(module: TaskModule, task: str) -> bool:
    return isinstance(module, LabelAnswers) and module.kind(task) == "number"
