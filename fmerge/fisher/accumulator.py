"""Sums of squared per-example gradients, batch by batch, and the estimate made of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmerge.fisher.estimators import Estimator, candidate_weights, uniforms
from fmerge.params import Params

LogProbs = Callable[[Any], Tensor]
"""From a batch to ℓ (n, c), the log-likelihoods of each example's candidate answers."""


@dataclass(frozen=True)
class FisherEstimate:
    """A diagonal Fisher.

    Attributes:
        values: F by parameter name, of the parameter's shape, at least float32, on the CPU.
        count: N, the number of examples it is a mean over.
    """

    values: Params
    count: int


def batch_labels(batch: Any) -> Tensor:
    """Reads the true answers of a batch from its ``"labels"``.

    Args:
        batch: A mapping with ``"labels"`` (n,).

    Returns:
        The labels (n,).
    """
    labels: Tensor = batch["labels"]
    return labels


class FisherAccumulator:
    """Adds Σₙ Σ꜀ W[n,c] (∂ℓ[n,c]/∂θ)² over batches, for every parameter that requires grad.

    The square is taken per example and candidate, after the gradient was summed over the
    example's tokens and over all uses of a shared parameter, and before any sum over examples.

    Args:
        module: The module whose parameters are differentiated; in eval mode while it is used.
        log_probs: From a batch to ℓ (n, c).
        estimator: Which candidates enter, with which weights.
        samples: S, draws per example of ``sampled``.
        seed: Seed of those draws.
        labels: From a batch to the true answers (n,), for ``empirical``.

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
    ) -> None:
        self.module = module
        self.log_probs = log_probs
        self.estimator: Estimator = estimator
        self.samples = samples
        self.seed = seed
        self.labels = labels
        self.count = 0
        self.sums: Params = {
            name: torch.zeros_like(parameter, dtype=_accumulation_dtype(parameter))
            for name, parameter in self._parameters().items()
        }

    def add(self, batch: Any, indices: Sequence[int] | None = None) -> int:
        """Adds one batch.

        Args:
            batch: What ``log_probs`` takes: tensors with the examples along the first dimension,
                in any nesting of mappings and sequences.
            indices: Positions of its examples in the whole pass, which pick the random numbers
                of ``sampled``; consecutive when None.

        Returns:
            n, the number of examples added.
        """
        n = batch_size(batch)
        if indices is None:
            indices = range(self.count, self.count + n)
        parameters = self._parameters()
        with evaluating(self.module), torch.enable_grad():
            for i, index in enumerate(indices):
                self._add_example(example(batch, i, n), index, parameters)
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

    def _add_example(self, one: Any, index: int, parameters: dict[str, nn.Parameter]) -> None:
        log_likelihoods = self.log_probs(one)
        labels = self.labels(one) if self.estimator == "empirical" else None
        draws = uniforms([index], self.samples, self.seed) if self.estimator == "sampled" else None
        weights = candidate_weights(log_likelihoods, self.estimator, labels, draws)[0]
        candidates = weights.nonzero().flatten().tolist()
        for candidate in candidates:
            gradients = torch.autograd.grad(
                log_likelihoods[0, candidate],
                list(parameters.values()),
                retain_graph=candidate != candidates[-1],
                allow_unused=True,  # such a parameter's derivative is zero
            )
            weight = float(weights[candidate])
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    squared = gradient.to(self.sums[name].dtype).square_()
                    self.sums[name].add_(squared, alpha=weight)


def estimate_fisher(
    module: nn.Module,
    batches: Iterable[Any],
    log_probs: LogProbs,
    estimator: Estimator = "exact",
    samples: int = 1,
    seed: int = 0,
    labels: Callable[[Any], Tensor] = batch_labels,
) -> FisherEstimate:
    r"""Estimates a diagonal Fisher without a Trainer.

    .. math::
        F = 1/N \sum_n \sum_c W_{nc} (\partial \ell_{nc} / \partial \theta)^2

    Args:
        module: Any module; its parameters that require grad are differentiated, in eval mode.
        batches: The data, on the module's device.
        log_probs: From a batch to ℓ (n, c), the log-likelihoods of the candidate answers.
        estimator: ``exact``: W = softmax꜀(ℓ); ``sampled``: answers drawn from it;
            ``empirical``: the true answer.
        samples: Draws per example of ``sampled``.
        seed: Seed of those draws.
        labels: From a batch to the true answers (n,), for ``empirical``.

    Returns:
        F by parameter name, and the number of examples.
    """
    accumulator = FisherAccumulator(module, log_probs, estimator, samples, seed, labels)
    for batch in batches:
        accumulator.add(batch)
    return accumulator.estimate()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module in eval mode and gives every submodule its own mode back.

    Args:
        module: Any module.

    Yields:
        Nothing; no dropout inside the block.
    """
    modes = {submodule: submodule.training for submodule in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


def batch_size(batch: Any) -> int:
    """Counts the examples of a batch.

    Args:
        batch: Tensors in any nesting of mappings and sequences.

    Returns:
        The first dimension of the first tensor.

    Raises:
        ValueError: If there is no tensor with a dimension in it.
    """
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ValueError(f"found no tensor to count examples by in a batch of {type(batch).__name__}")


def example(batch: Any, i: int, n: int) -> Any:
    """Cuts one example out of a batch.

    Args:
        batch: Tensors in any nesting of mappings and sequences.
        i: The example's position in the batch.
        n: The batch's size.

    Returns:
        The same nesting; tensors of first dimension n hold example i alone (1, …).
    """
    if isinstance(batch, Tensor):
        return batch[i : i + 1] if batch.ndim and len(batch) == n else batch
    if isinstance(batch, Mapping):
        return {key: example(value, i, n) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(example(value, i, n) for value in batch)
    return batch


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for value in batch:
            yield from _leaves(value)
    else:
        yield batch


def _accumulation_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
