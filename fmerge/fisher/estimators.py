"""Which candidate answers enter a Fisher, and with which weight.

Every estimator is F = 1/N Σₙ Σ꜀ W[n,c] (∂ℓ[n,c]/∂θ)², with ℓ (n, c) the log-likelihoods of the
candidates; the estimators differ in W alone. `rademacher` has the W of `exact` in expectation.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Estimator = Literal["exact", "sampled", "empirical", "rademacher"]
ESTIMATORS: tuple[str, ...] = get_args(Estimator)

Weighting = Estimator | Literal["given"]
"""An estimator, or ``given``: the candidates are answers that were drawn beforehand."""

_BLOCK = 256


def candidate_weights(
    log_likelihoods: Tensor,
    estimator: Weighting,
    labels: Tensor | None = None,
    uniforms: Tensor | None = None,
) -> Tensor:
    """Computes W, the weight of each candidate's squared gradient.

    - exact: W[n,c] = p(c|xₙ) = softmax꜀(ℓ)
    - sampled: W[n,c] = (number of the S draws from p(·|xₙ) that are c) / S
    - empirical: W[n,c] = 1 for the true answer, else 0
    - rademacher: W[n,c] = p(c|xₙ), as roots under random signs
    - given: W[n,c] = 1/c, for answers too many to list, of which c were drawn

    Args:
        log_likelihoods: ℓ (n, c), −inf where an example has fewer candidates than the widest.
        estimator: One of the five.
        labels: True answers (n,), for ``empirical``.
        uniforms: Numbers in [0, 1) (n, S), for ``sampled``: inverted through the cumulative p.

    Returns:
        W (n, c), without gradient, rows summing to one.

    Raises:
        ValueError: If the estimator is unknown, or its labels or uniforms are missing.
    """
    probabilities = log_likelihoods.detach().softmax(dim=1)
    if estimator in {"exact", "rademacher"}:
        return probabilities
    if estimator == "given":
        return torch.full_like(probabilities, 1 / probabilities.shape[1])
    if estimator == "empirical":
        if labels is None:
            raise ValueError("the empirical Fisher needs the true answers: labels (n,)")
        return torch.zeros_like(probabilities).scatter_(1, labels.long()[:, None], 1.0)
    if estimator == "sampled":
        if uniforms is None:
            raise ValueError("the sampled Fisher needs uniform numbers (n, S)")
        cumulative = probabilities.double().cumsum(dim=1)
        scaled = uniforms.to(cumulative) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, scaled, right=True)
        draws = torch.zeros_like(probabilities)
        drawn = drawn.clamp_max(probabilities.shape[1] - 1)
        counts = draws.scatter_add_(1, drawn, torch.ones_like(scaled, dtype=draws.dtype))
        return counts / uniforms.shape[1]
    raise ValueError(f"unknown estimator '{estimator}'; known: {', '.join(ESTIMATORS)}")


def check_numbers(log_likelihoods: Tensor) -> None:
    """Checks that every example has an answer with a finite log-likelihood.

    Args:
        log_likelihoods: ℓ (n, c), −inf where an example has fewer candidates than the widest.

    Raises:
        ValueError: If one has none, or a NaN or +inf.
    """
    # the sum Σ꜀ exp ℓ of a row is finite and positive if and only if softmax gives numbers
    if not bool(torch.isfinite(log_likelihoods.detach().logsumexp(dim=1)).all()):
        raise ValueError("the log-likelihoods of an example are not numbers, or all are -inf")


def uniforms(indices: Sequence[int], samples: int, seed: int) -> Tensor:
    """Draws the uniform numbers that belong to given examples.

    They depend on the example's index and the seed alone: batch size and number of processes do
    not change a sampled Fisher.

    Args:
        indices: Positions of the examples in the whole pass (n,).
        samples: S, draws per example.
        seed: Seed of the stream.

    Returns:
        Numbers in [0, 1) (n, S), float64, on the CPU.
    """
    blocks = {
        block: torch.rand(
            (_BLOCK, samples),
            generator=torch.Generator().manual_seed(seed * 1_000_003 + block),
            dtype=torch.float64,
        )
        for block in {index // _BLOCK for index in indices}
    }
    return torch.stack([blocks[index // _BLOCK][index % _BLOCK] for index in indices])


def signs(indices: Sequence[int], samples: int, candidates: int, seed: int) -> Tensor:
    """Draws the random signs ε that belong to given examples.

    Args:
        indices: Positions of the examples in the whole pass (n,).
        samples: K, backward passes.
        candidates: c.
        seed: Seed of the stream.

    Returns:
        ±1 (n, K, c), on the CPU.
    """
    drawn = uniforms(indices, samples * candidates, seed)
    return torch.where(drawn < 0.5, -1.0, 1.0).view(len(indices), samples, candidates)
