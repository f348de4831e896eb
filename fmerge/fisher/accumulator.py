"""Sums of squared per-example gradients, batch by batch, and the estimate made of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmerge.fisher.batches import LogProbs, batch_labels, batch_size, differentiating, evaluating
from fmerge.fisher.estimators import Estimator, candidate_weights, signs, uniforms
from fmerge.fisher.fallback import Fallback, square_gradients
from fmerge.params import Params


@dataclass(frozen=True)
class FisherEstimate:
    """A diagonal Fisher.

    Attributes:
        values: F by parameter name, of the parameter's shape, at least float32, on the CPU.
        count: N, the number of examples it is a mean over.
    """

    values: Params
    count: int


class FisherAccumulator:
    """Adds Σₙ Σ꜀ W[n,c] (∂ℓ[n,c]/∂θ)² over batches, for every parameter that requires grad.

    The square is taken per example and candidate, after the gradient was summed over the
    example's tokens and over all uses of a shared parameter, and before any sum over examples.

    Args:
        module: The module whose parameters are differentiated; in eval mode while it is used.
        log_probs: From a batch to ℓ (n, c).
        estimator: Which candidates enter, with which weights.
        samples: S, draws per example of ``sampled``; K, backward passes of ``rademacher``.
        seed: Seed of those draws.
        labels: From a batch to the true answers (n,), for ``empirical``.
        fallback: What is done about parameters that no rule covers: exact differentiation
            example by example, by ``vmap`` or a ``loop``, or an ``error`` that names them.

    Attributes:
        sums: The sums so far by parameter name, at least float32, on the parameter's device.
        count: Examples so far.
    """

    def __init__(
        self,
        module: nn.Module,
        log_probs: LogProbs,
        estimator: Estimator = "exact",
        samples: int = 1,
        seed: int = 0,
        labels: Callable[[Any], Tensor] = batch_labels,
        fallback: Fallback = "vmap",
    ) -> None:
        self.module = module
        self.log_probs = log_probs
        self.estimator: Estimator = estimator
        self.samples = samples
        self.seed = seed
        self.labels = labels
        self.count = 0
        self.sums: Params = {
            name: torch.zeros(
                parameter.shape,
                dtype=torch.promote_types(parameter.dtype, torch.float32),
                device=parameter.device,
            )
            for name, parameter in self._parameters().items()
        }
        # the rules name transformers' layers, whose import takes seconds that --help has not
        from fmerge.fisher.engine import SquaredGradients

        self._engine = SquaredGradients(module, log_probs, self._parameters(), fallback)

    def reset(self) -> None:
        """Begins anew, at the module's present weights; what is known of its layers stays."""
        self.count = 0
        for total in self.sums.values():
            total.zero_()

    def add(self, batch: Any, indices: Sequence[int] | None = None) -> int:
        """Adds one batch.

        Args:
            batch: What ``log_probs`` takes: tensors with the examples along the first dimension,
                in any nesting of mappings and sequences.
            indices: Positions of its examples in the whole pass, which pick the random numbers
                of ``sampled``; consecutive when None.

        Returns:
            n, the number of examples added.

        Raises:
            ValueError: If there is not one index per example.
        """
        n = batch_size(batch)
        if indices is None:
            indices = range(self.count, self.count + n)
        if len(indices) != n:
            raise ValueError(f"got {len(indices)} indices for a batch of {n} examples")
        with evaluating(self.module), torch.enable_grad():
            if self.estimator == "rademacher":
                self._add_signed(batch, indices)
            else:
                self._engine.add(
                    batch, n, lambda values: self._weights(batch, indices, values), self.sums
                )
        self.count += n
        return n

    def estimate(self) -> FisherEstimate:
        """Divides the sums by the number of examples.

        Returns:
            The Fisher so far.

        Raises:
            ValueError: If no example was added.
        """
        if self.count == 0:
            raise ValueError("no example was added: the Fisher of nothing is not defined")
        values = {name: (total / self.count).cpu() for name, total in self.sums.items()}
        return FisherEstimate(values, self.count)

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def _weights(self, batch: Any, indices: Sequence[int], log_likelihoods: Tensor) -> Tensor:
        labels = self.labels(batch) if self.estimator == "empirical" else None
        draws = uniforms(indices, self.samples, self.seed) if self.estimator == "sampled" else None
        return candidate_weights(log_likelihoods, self.estimator, labels, draws)

    def _add_signed(self, batch: Any, indices: Sequence[int]) -> None:
        """Adds 1/K Σₖ (∂ Σₙ꜀ ε √p ℓ / ∂θ)², of the whole batch: unbiased, since E[ε ε'] = 0."""
        parameters = self._parameters()
        with differentiating(parameters.values(), self.module.parameters()):
            log_likelihoods = self.log_probs(batch)
            roots = candidate_weights(log_likelihoods, self.estimator).sqrt()
            random = signs(indices, self.samples, roots.shape[1], self.seed).to(roots)
            seeds = [random[:, k] * roots for k in range(self.samples)]
            square_gradients(log_likelihoods, seeds, parameters, self.sums, 1 / self.samples)


def estimate_fisher(
    module: nn.Module,
    batches: Iterable[Any],
    log_probs: LogProbs,
    estimator: Estimator = "exact",
    samples: int = 1,
    seed: int = 0,
    labels: Callable[[Any], Tensor] = batch_labels,
    fallback: Fallback = "vmap",
) -> FisherEstimate:
    r"""Estimates a diagonal Fisher without a Trainer.

    .. math::
        F = 1/N \sum_n \sum_c W_{nc} (\partial \ell_{nc} / \partial \theta)^2

    Args:
        module: Any module; its parameters that require grad are differentiated, in eval mode.
        batches: The data, on the module's device.
        log_probs: From a batch to ℓ (n, c), the log-likelihoods of the candidate answers.
        estimator: ``exact``: W = softmax꜀(ℓ); ``sampled``: answers drawn from it;
            ``empirical``: the true answer; ``rademacher``: unbiased for exact, by random signs.
        samples: Draws per example of ``sampled``, backward passes of ``rademacher``.
        seed: Seed of those draws.
        labels: From a batch to the true answers (n,), for ``empirical``.
        fallback: What is done about parameters that no rule covers: exact differentiation
            example by example, by ``vmap`` or a ``loop``, or an ``error`` that names them.

    Returns:
        F by parameter name, and the number of examples.
    """
    accumulator = FisherAccumulator(module, log_probs, estimator, samples, seed, labels, fallback)
    for batch in batches:
        accumulator.add(batch)
    return accumulator.estimate()
