"""The Fisher of a model whose parameters FSDP2 splits over processes."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from fmerge.fisher.accumulator import FisherAccumulator, FisherEstimate
from fmerge.fisher.batches import (
    LogProbs,
    batch_labels,
    batch_size,
    differentiating,
    evaluating,
    replace,
)
from fmerge.fisher.engine.engine import SquaredGradients
from fmerge.fisher.engine.independence import interacting
from fmerge.fisher.engine.shards import Shards
from fmerge.fisher.estimators import Weighting, candidate_weights, check_numbers, signs
from fmerge.fisher.settings import FisherSettings
from fmerge.params import Params


@final
class ShardedAccumulator(FisherAccumulator):
    """Adds squares to sums that are split like the parameters, by rules alone.

    All processes add as many batches, at the same time. Each has examples of its own.

    Args:
        root: The module to which ``fully_shard`` was applied last, after its blocks.
        module: The part of it whose parameters are differentiated.
        log_probs: From a batch to ℓ (n, c); a method of ``root`` that puts it together, by
            ``register_fsdp_forward_method``.
        estimator: Which candidates enter, with which weights.
        samples: S, draws per example of ``sampled``; K, backward passes of ``rademacher``.
        seed: Seed of those draws.
        labels: From a batch to the true answers (n,), for ``empirical``.

    Attributes:
        sums: This process's share of the sums over all processes, by parameter name.
        count: Examples of this process so far.
    """

    def __init__(
        self,
        root: nn.Module,
        module: nn.Module,
        log_probs: LogProbs,
        estimator: Weighting = FisherSettings.estimator,
        samples: int = FisherSettings.samples,
        seed: int = FisherSettings.seed,
        labels: Callable[[Any], Tensor] = batch_labels,
    ) -> None:
        self.shards = Shards(root, module)
        self._counted = 0
        super().__init__(
            *(module, log_probs, estimator, samples, seed), labels=labels, fallback="error"
        )
        self._engine = SquaredGradients(
            module, log_probs, self._parameters(), "error", shards=self.shards
        )

    def add(self, batch: Any, indices: Sequence[int] | None = None, counted: bool = True) -> int:
        """Adds one batch.

        Args:
            batch: As of the base class.
            indices: Positions of its examples in the whole pass; consecutive when None.
            counted: Whether it enters the sums. A process that has no more batches adds any one
                without, while others add theirs.

        Returns:
            n, the number of examples added.

        Raises:
            ValueError: If examples influence each other, or no rule covers a parameter.
        """
        n = batch_size(batch)
        if indices is None:
            indices = range(self.count, self.count + n)
        self._counted = n if counted else 0
        if n == 1:  # whose gradient needs no rule; but rules are what other processes use
            batch = replace(batch, 1, lambda one: torch.cat([one, one]), lambda texts: [*texts] * 2)
            indices = [*indices] * 2
        with evaluating(self._modules), torch.enable_grad():
            if self._one_by_one is None:
                self._one_by_one = interacting(
                    self.log_probs, batch, len(indices), self.shards.whole.values(), self.shards
                )
            if self._one_by_one:
                raise ValueError(
                    "the log-likelihoods of an example by itself are not those in its batch, as "
                    "with statistics of a batch; under fsdp2 examples must not influence each other"
                )
            self._add(batch, len(indices), indices)
        self.count += self._counted
        return self._counted

    def estimate(self) -> FisherEstimate:
        """Puts the shares together, in the first process alone.

        Returns:
            The Fisher so far, without values in other processes.

        Raises:
            ValueError: If no example was added.
        """
        if self.count == 0:
            raise ValueError("no example was added: the Fisher of nothing is not defined")
        values = {}
        for name, total in self.shards.gathered(self.sums):
            if self.shards.is_first:
                values[name] = (total / self.count).cpu()
        return FisherEstimate(values, self.count)

    def _zeros(self) -> Params:
        zeros: Params = self.shards.zeros()
        return zeros

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: self.shards.whole[name] for name in self.shards.zeros()}

    def _weights(self, batch: Any, indices: Sequence[int], log_likelihoods: Tensor) -> Tensor:
        weights = super()._weights(batch, indices, log_likelihoods).clone()
        weights[self._counted :] = 0
        return weights

    def _add_signed(self, batch: Any, indices: Sequence[int], sums: Params) -> None:
        twins = self.shards.twins(self._parameters())
        with differentiating(twins, self.shards.twins(self.shards.whole)):
            log_likelihoods = self.log_probs(batch)
            check_numbers(log_likelihoods)
            roots = candidate_weights(log_likelihoods, self.estimator).sqrt()
            roots[self._counted :] = 0
            random = signs(indices, self.samples, roots.shape[1], self.seed).to(roots)
            seeds = [random[:, k] * roots for k in range(self.samples)]
            self.shards.square_gradients(log_likelihoods, seeds, sums, 1 / self.samples)
