"""A diagonal Fisher without a Trainer."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from fmerge.fisher.accumulator import FisherAccumulator, FisherEstimate
from fmerge.fisher.batches import LogProbs, batch_labels
from fmerge.fisher.engine.per_example import Fallback
from fmerge.fisher.estimators import Weighting
from fmerge.fisher.settings import Errors, FisherSettings


def estimate_fisher(
    module: nn.Module,
    batches: Iterable[Any],
    log_probs: LogProbs,
    estimator: Weighting = FisherSettings.estimator,
    samples: int = FisherSettings.samples,
    seed: int = FisherSettings.seed,
    labels: Callable[[Any], Tensor] = batch_labels,
    fallback: Fallback = FisherSettings.fallback,
    errors: Errors | None = None,
    until: float | None = FisherSettings.until,
) -> FisherEstimate:
    r"""Estimates a diagonal Fisher without a Trainer.

    .. math::
        F = 1/N \sum_n \sum_c W_{nc} (\partial \ell_{nc} / \partial \theta)^2

    Args:
        module: Any module; its parameters that require grad are differentiated, in eval mode.
        batches: The data, on the module's device; in random order where ``until`` is given.
        log_probs: From a batch to ℓ (n, c), the log-likelihoods of the candidate answers.
        estimator: Which answers enter: see ``fmerge.fisher.candidate_weights`` for each W.
        samples: Draws per example of ``sampled``, backward passes of ``rademacher``.
        seed: Seed of those draws.
        labels: From a batch to the true answers (n,), for ``empirical``.
        fallback: How to differentiate what no rule covers: ``vmap``, ``loop`` or ``error``.
        errors: Estimate the standard error of the ``total``, or those of all ``entries``.
        until: Stop when the relative standard error of the total is below this.

    Returns:
        F by parameter name, the number of examples, and the standard errors asked for.

    Examples:
        >>> import fmerge, torch
        >>> module = torch.nn.Linear(2, 3)
        >>> batches = [torch.randn(4, 2), torch.randn(4, 2)]
        >>> fisher = fmerge.estimate_fisher(module, batches, lambda x: module(x).log_softmax(1))
        >>> fisher.count, fisher.values["weight"].shape
        (8, torch.Size([3, 2]))
    """
    errors = errors or (None if until is None else "total")
    accumulator = FisherAccumulator(
        module, log_probs, estimator, samples, seed, labels, fallback=fallback, errors=errors
    )
    for batch in batches:
        accumulator.add(batch)
        if until is not None and accumulator.spread is not None:
            if accumulator.spread.enough(until):
                break
    return accumulator.estimate()
