"""Sums of squared per-example gradients, batch by batch, and the estimate made of them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmerge.fisher.batches import (
    LogProbs,
    batch_labels,
    batch_size,
    differentiating,
    evaluating,
    example,
)
from fmerge.fisher.engine.engine import SquaredGradients
from fmerge.fisher.engine.independence import interacting
from fmerge.fisher.engine.per_example import Fallback, square_gradients
from fmerge.fisher.estimators import (
    Weighting,
    candidate_weights,
    check_numbers,
    signs,
    uniforms,
)
from fmerge.fisher.settings import Errors, FisherSettings
from fmerge.fisher.standard_error import StandardError, total_of
from fmerge.params import Params

_HALF_SCALE = 2.0**12
"""What gradients are multiplied by in float16, which has no numbers below 6e-8."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FisherEstimate:
    """A diagonal Fisher.

    Attributes:
        values: F by parameter name, of the parameter's shape, at least float32, on the CPU.
        count: N, the number of examples it is a mean over.
        relative_error: Standard error of the sum of all entries, relative to that sum, by the
            variance between batches; None where it was not asked for.
        relative_interval: Half of the 95% interval of that sum, relative to it, by Student's t;
            None likewise.
        standard_errors: Standard error of every entry by parameter name; None likewise.
    """

    values: Params
    count: int
    relative_error: float | None = None
    relative_interval: float | None = None
    standard_errors: Params | None = None


class FisherAccumulator:
    """Adds Σₙ Σ꜀ W[n,c] (∂ℓ[n,c]/∂θ)² over batches, for every parameter that requires grad.

    The square is taken per example and candidate, after the gradient was summed over the
    example's tokens and over all uses of a shared parameter, and before any sum over examples.

    Args:
        module: The module whose parameters are differentiated; in eval mode while it is used,
            and of the same layers all along.
        log_probs: From a batch to ℓ (n, c).
        estimator: Which candidates enter, with which weights.
        samples: S, draws per example of ``sampled``; K, backward passes of ``rademacher``.
        seed: Seed of those draws.
        labels: From a batch to the true answers (n,), for ``empirical``.
        fallback: What is done about parameters that no rule covers: exact differentiation
            example by example, by ``vmap`` or a ``loop``, or an ``error`` that names them.
        errors: Whether the standard error of the ``total`` is estimated too, or those of all
            ``entries``, which takes two more copies of the sums.

    Attributes:
        sums: The sums so far by parameter name, at least float32, on the parameter's device.
        count: Examples so far.
        spread: What the standard errors are computed from.
        shards: The process's shares of parameters that are split; None where they are whole.
    """

    shards: Any = None

    def __init__(
        self,
        module: nn.Module,
        log_probs: LogProbs,
        estimator: Weighting = FisherSettings.estimator,
        samples: int = FisherSettings.samples,
        seed: int = FisherSettings.seed,
        labels: Callable[[Any], Tensor] = batch_labels,
        fallback: Fallback = FisherSettings.fallback,
        errors: Errors | None = None,
    ) -> None:
        self.module = module
        self.log_probs = log_probs
        self.estimator: Weighting = estimator
        self.samples = samples
        self.seed = seed
        self.labels = labels
        self.count = 0
        self.sums = self._zeros()
        self.spread: StandardError | None = None
        if errors is not None:
            self.spread = StandardError(self._zeros() if errors == "entries" else None)
        self._modules = list(module.modules())
        self._scratch: Params | None = None
        self._one_by_one: bool | None = None
        self.fallback = fallback
        self._scale = 1.0
        self._engine = SquaredGradients(module, log_probs, self._parameters(), fallback)

    def reset(self) -> None:
        """Begins anew, at the module's present weights; what is known of its layers stays."""
        self.count = 0
        _clear(self.sums)
        if self.spread is not None:
            _clear(self.spread.squares or {})
            self.spread = StandardError(self.spread.squares)

    def state(self) -> Params:
        """Gives all that a pass is made of so far, to be saved between two batches.

        Returns:
            Names to tensors, some of which share memory with the sums.
        """
        state = {f"sums.{name}": value for name, value in self.sums.items()}
        state["count"] = torch.tensor(self.count)
        if self.spread is not None:
            state["spread"] = self.spread.numbers()
            squares = self.spread.squares or {}
            state |= {f"squares.{name}": value for name, value in squares.items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state, to the same sums bit for bit.

        Args:
            state: What ``state`` gave in a pass of the same module and settings.
        """
        self.count = int(state["count"])
        for name, total in self.sums.items():
            total.copy_(state[f"sums.{name}"])
        if self.spread is not None:
            self.spread.set_numbers(state["spread"])
            for name, square in (self.spread.squares or {}).items():
                square.copy_(state[f"squares.{name}"])

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
        with evaluating(self._modules), torch.enable_grad():
            if n > 1 and self._interacting(batch, n):
                for i, index in enumerate(indices):
                    self._add(example(batch, i, n), 1, [index])
            else:
                self._add(batch, n, indices)
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
        if self.spread is None:
            return FisherEstimate(values, self.count)
        spread = self.spread
        errors = None if spread.squares is None else spread.errors(self.sums)
        return FisherEstimate(
            values, self.count, spread.relative_error(), spread.relative_interval(), errors
        )

    def _interacting(self, batch: Any, n: int) -> bool:
        """Whether examples must be taken one by one; found out on the first batch of several."""
        if self._one_by_one is None:
            parameters = self._parameters()
            self._one_by_one = interacting(self.log_probs, batch, n, parameters.values())
            torch.clear_autocast_cache()  # its weights were cast without a graph
            if self._one_by_one and self.fallback == "error":
                raise ValueError(
                    "the log-likelihoods of an example by itself are not those in its batch, as "
                    "with statistics of a batch: no rule covers the parameters "
                    f"{', '.join(sorted(parameters))}; use batches of one example"
                )
            if self._one_by_one:
                _LOG.warning(
                    "the log-likelihoods of an example by itself are not those in its batch, as "
                    "with statistics of a batch: the Fisher is that of each example by itself"
                )
        return self._one_by_one

    def _zeros(self) -> Params:
        return {
            name: torch.zeros(
                parameter.shape,
                dtype=torch.promote_types(parameter.dtype, torch.float32),
                device=parameter.device,
            )
            for name, parameter in self._parameters().items()
        }

    def _add(self, batch: Any, n: int, indices: Sequence[int]) -> None:
        """Adds a batch to the sums; to sums of its own first, where those are needed."""
        half = self._in_half()
        entries = self.spread is not None and self.spread.squares is not None
        if not half and not entries:
            self._add_squares(batch, n, indices, self.sums)
            if self.spread is not None:
                self.spread.add(n, total_of(self.sums) - self.spread.total)
            return
        if self._scratch is None:
            self._scratch = self._zeros()
            self._scale = _HALF_SCALE if half else 1.0
        own = self._scratch
        self._add_squares(batch, n, indices, _clear(own))
        while half and not math.isfinite(total_of(own)):
            if self._scale <= 1:
                raise ValueError("gradients overflow float16; use bf16-mixed or 32-true precision")
            self._scale /= 4
            self._add_squares(batch, n, indices, _clear(own))
        for name, value in own.items():
            self.sums[name].add_(value)
        if self.spread is not None:
            self.spread.add(n, total_of(own), own if entries else None)

    def _add_squares(self, batch: Any, n: int, indices: Sequence[int], sums: Params) -> None:
        square = self._scale**2
        if self.estimator == "rademacher":
            self._add_signed(batch, indices, sums)
        else:
            self._engine.add(
                batch, n, lambda values: self._weights(batch, indices, values) * square, sums
            )
        if square != 1:
            for value in sums.values():
                value.div_(square)

    def _in_half(self) -> bool:
        """Whether gradients are float16, and may therefore vanish or overflow."""
        parameter = next((p for p in self.module.parameters() if p.requires_grad), None)
        if parameter is None:
            return False
        kind = parameter.device.type
        cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        return cast or parameter.dtype == torch.float16

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def _weights(self, batch: Any, indices: Sequence[int], log_likelihoods: Tensor) -> Tensor:
        labels = self.labels(batch) if self.estimator == "empirical" else None
        draws = uniforms(indices, self.samples, self.seed) if self.estimator == "sampled" else None
        return candidate_weights(log_likelihoods, self.estimator, labels, draws)

    def _add_signed(self, batch: Any, indices: Sequence[int], sums: Params) -> None:
        """Adds 1/K Σₖ (∂ Σₙ꜀ ε √p ℓ / ∂θ)², of the whole batch: unbiased, since E[ε ε'] = 0."""
        parameters = self._parameters()
        with differentiating(parameters.values(), self.module.parameters()):
            log_likelihoods = self.log_probs(batch)
            check_numbers(log_likelihoods)
            roots = candidate_weights(log_likelihoods, self.estimator).sqrt()
            random = signs(indices, self.samples, roots.shape[1], self.seed).to(roots)
            seeds = [random[:, k] * roots * self._scale for k in range(self.samples)]
            square_gradients(log_likelihoods, seeds, parameters, sums, 1 / self.samples)


def _clear(sums: Params) -> Params:
    for value in sums.values():
        value.zero_()
    return sums
