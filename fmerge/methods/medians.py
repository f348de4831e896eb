"""Weighted medians of experts."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fmerge.methods.base import MergeMethod, Statistic, check_positive_sum, wide
from fmerge.params import Params


class FisherMedian(MergeMethod):
    """Median of the experts weighted by the diagonal Fishers: θ = medₘ(θₘ; λₘFₘ), elementwise.

    The smallest θₘ such that it and the smaller ones hold at least half of Σₘ λₘFₘ. It minimises
    Σₘ λₘFₘ|θ − θₘ|, where Fisher merging (Matena & Raffel 2022) minimises the squares: one expert
    that is far off moves it less. Where Σₘ λₘFₘ = 0 the weights are λₘ.
    """

    statistic: ClassVar[Statistic | None] = "fisher"
    scale_invariant = True

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes the weighted lower median, entry by entry.

        Args:
            base: Not used.
            experts: θₘ, of one layout.
            coefficients: λₘ ≥ 0; only their ratios matter.
            fishers: Fₘ ≥ 0, of that layout.

        Returns:
            The median, tensor by tensor: every entry is one of the experts'.

        Raises:
            ValueError: If there are no Fishers, or the coefficients sum to zero.
        """
        if fishers is None:
            raise ValueError("FisherMedian needs one diagonal Fisher per expert")
        check_positive_sum(coefficients)
        merged: Params = {}
        for name, reference in experts[0].items():
            values = [wide(expert[name]) for expert in experts]
            weights = [
                coefficient * fisher[name].to(value)
                for coefficient, fisher, value in zip(coefficients, fishers, values, strict=True)
            ]
            unknown = torch.stack(weights).sum(dim=0) == 0
            weights = [
                weight.masked_fill(unknown, coefficient)
                for coefficient, weight in zip(coefficients, weights, strict=True)
            ]
            merged[name] = _lower_median(values, weights).to(reference)
        return merged


def _lower_median(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """minₘ {vₘ : Σₙ wₙ[vₙ ≤ vₘ] ≥ Σₙ wₙ / 2}: for few models faster than sorting each entry."""
    # M roundings must not push two equal halves apart
    slack = 1 - 2 * len(values) * torch.finfo(values[0].dtype).eps
    half = torch.stack(list(weights)).sum(dim=0) / 2 * slack
    median = torch.full_like(half, torch.inf)
    for candidate in values:
        held = torch.zeros_like(half)
        for value, weight in zip(values, weights, strict=True):
            held.addcmul_(weight, (value <= candidate).to(weight))
        median = torch.where(held >= half, torch.minimum(median, candidate), median)
    return median
