"""The fallback: exact differentiation, example by example, of what no rule covers."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fmerge.fisher.batches import LogProbs, differentiating, example, replace
from fmerge.params import Params

Fallback = Literal["vmap", "loop", "error"]
"""How parameters that no rule covers are differentiated: by ``vmap`` over examples, or by a loop
where a model does not allow that; always by a ``loop``; or not at all: an ``error`` names them."""

_CHUNK_BYTES = 2**26
"""Memory of the per-example gradients that vmap makes at once."""

_LOG = logging.getLogger(__name__)


def plain_squares(
    log_probs: LogProbs,
    batch: Any,
    seeds: Sequence[Tensor],
    parameters: Mapping[str, nn.Parameter],
    sums: Params,
) -> None:
    r"""Adds the squared gradients of a batch of one example by ordinary backward passes.

    .. math::
        sums \mathrel{+}= \sum_k \Big(\partial \sum_c seeds_k[c]\, \ell[c] / \partial\theta\Big)^2

    Args:
        log_probs: From a batch to ℓ (1, c).
        batch: One example.
        seeds: Of each backward pass (1, c).
        parameters: The parameters by name, which require grad.
        sums: What is added to, by name.
    """
    log_likelihoods = log_probs(batch)
    square_gradients(
        log_likelihoods, [fit(seed, log_likelihoods) for seed in seeds], parameters, sums
    )


def square_gradients(
    log_likelihoods: Tensor,
    seeds: Sequence[Tensor],
    parameters: Mapping[str, nn.Parameter],
    sums: Params,
    scale: float = 1.0,
) -> None:
    """Adds the squared gradients of Σ seeds · ℓ, one backward pass for each of the seeds.

    Args:
        log_likelihoods: ℓ (n, c), with its graph.
        seeds: Of each backward pass (n, c).
        parameters: The parameters by name, which require grad.
        sums: What is added to, by name.
        scale: Factor of the squares.
    """
    if not log_likelihoods.requires_grad or not parameters:
        return
    for k, seed in enumerate(seeds):
        gradients = torch.autograd.grad(
            log_likelihoods,
            list(parameters.values()),
            seed,
            retain_graph=k + 1 < len(seeds),
            allow_unused=True,  # such a parameter's derivative is zero
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                wide = gradient.to(sums[name].dtype)
                sums[name].addcmul_(wide, wide, value=scale)


def fit(seed: Tensor, log_likelihoods: Tensor) -> Tensor:
    """Cuts a seed to the width of ℓ: an example by itself may have fewer candidates.

    Args:
        seed: (n, c).
        log_likelihoods: ℓ (n, c').

    Returns:
        (n, c').

    Raises:
        ValueError: If that leaves a candidate out, or ℓ has rows of other examples.
    """
    n, width = log_likelihoods.shape
    if n != len(seed) or bool(seed[:, width:].any()) or width > seed.shape[1]:
        raise ValueError(
            f"log-likelihoods of an example by itself are {(n, width)}, in its batch "
            f"{(1, seed.shape[1])}: it must have the same candidates"
        )
    return seed[:, :width]


class PerExample:
    """Squares the gradients of given parameters, one example at a time or by vmap.

    Args:
        module: The module that has the parameters.
        log_probs: From a batch to ℓ (n, c).
        fallback: ``vmap`` to try that first.
    """

    def __init__(self, module: nn.Module, log_probs: LogProbs, fallback: Fallback) -> None:
        self.function = _Function(module, log_probs)
        self.log_probs = log_probs
        self.vectorized = fallback == "vmap"
        self._compared: set[str] = set()

    @property
    def loops(self) -> bool:
        """Whether examples are taken by a loop, as asked for or as vmap failed."""
        return not self.vectorized

    def add(
        self,
        batch: Any,
        seeds: Sequence[Tensor],
        parameters: Mapping[str, nn.Parameter],
        sums: Params,
    ) -> None:
        """Adds a batch.

        Args:
            batch: n examples.
            seeds: Of each backward pass (n, c).
            parameters: The parameters by name.
            sums: What is added to, by name.
        """
        n = len(seeds[0])
        among = list(self.function.module.parameters())
        if self.vectorized:
            with differentiating((), among):
                squares = self._by_vmap(batch, seeds, parameters)
            if squares is not None:
                for name, square in squares.items():
                    sums[name].add_(square)
                return
        with differentiating(parameters.values(), among):
            for i in range(n):
                row = [seed[i : i + 1] for seed in seeds]
                nonzero = [seed for seed in row if bool(seed.any())]
                plain_squares(self.log_probs, example(batch, i, n), nonzero, parameters, sums)

    def _by_vmap(
        self, batch: Any, seeds: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> Params | None:
        """Returns None where vmap fails; its first result is compared with the loop's."""
        try:
            if not set(parameters) <= self._compared:
                one, row = example(batch, 0, len(seeds[0])), [seed[:1] for seed in seeds]
                found = self._vmap(one, row, parameters)
                expected = {name: torch.zeros_like(value) for name, value in found.items()}
                with differentiating(parameters.values(), self.function.module.parameters()):
                    plain_squares(self.log_probs, one, row, parameters, expected)
                for name, value in found.items():
                    _check_close(name, value, expected[name])
                self._compared |= set(parameters)
            return self._vmap(batch, seeds, parameters)
        except Exception as error:  # any kind: whatever a model's operations raise under vmap
            _LOG.warning("vmap over examples failed; a loop is used instead: %s", error)
            self.vectorized = False
            return None

    def _vmap(
        self, batch: Any, seeds: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> Params:
        n = len(seeds[0])
        columns: list[Tensor] = []
        replace(batch, n, lambda tensor: columns.append(tensor) or tensor)  # type: ignore[func-returns-value]
        values = {f"module.{name}": p.detach() for name, p in parameters.items()}

        def gradients(weights: Params, rows: list[Tensor], seed: Tensor) -> Params:
            left = iter(rows)
            one = replace(batch, n, lambda tensor: next(left)[None])

            def log_likelihoods(weights: Params) -> Tensor:
                result: Tensor = torch.func.functional_call(self.function, weights, (one,))
                return result[0]

            pull = torch.func.vjp(log_likelihoods, weights)[1]
            return dict(pull(seed)[0])

        bytes_each = sum(value.numel() * value.element_size() for value in values.values())
        size = max(1, _CHUNK_BYTES // bytes_each)
        squares = {
            name: torch.zeros(p.shape, dtype=_wide(p), device=p.device)
            for name, p in parameters.items()
        }
        for seed in seeds:
            for start in range(0, n, size):
                chunk = slice(start, start + size)
                rows = [column[chunk] for column in columns]
                found = torch.func.vmap(gradients, in_dims=(None, 0, 0))(values, rows, seed[chunk])
                for name in squares:
                    squares[name] += found[f"module.{name}"].to(squares[name]).square().sum(0)
        return squares


class _Function(nn.Module):
    """The log-likelihoods as a module, for ``torch.func.functional_call``."""

    def __init__(self, module: nn.Module, log_probs: LogProbs) -> None:
        super().__init__()
        self.module = module
        # in a tuple, since modules register attributes that are modules: if log_probs is the
        # module, functional_call would swap its weights twice and restore them once
        self._log_probs = (log_probs,)

    def forward(self, batch: Any) -> Tensor:
        return self._log_probs[0](batch)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _check_close(name: str, found: Tensor, expected: Tensor) -> None:
    tolerance = torch.finfo(found.dtype).eps ** 0.5
    if not bool((found - expected).norm() <= tolerance * (expected.norm() + 1)):
        raise ValueError(f"it gives another gradient of '{name}' than a loop does")
