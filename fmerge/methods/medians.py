"""Weighted medians of experts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fmerge.methods.base import TensorFormula, check_positive_sum
from fmerge.methods.inputs import MergeInputs, wide
from fmerge.methods.tensorwise import Tensorwise


class FisherMedian(Tensorwise):
    """Median of the experts weighted by the diagonal Fishers: θ = medₘ(θₘ; λₘFₘ), elementwise.

    The smallest θₘ such that it and the smaller ones hold at least half of Σₘ λₘFₘ. It minimises
    Σₘ λₘFₘ|θ − θₘ|, where Fisher merging (Matena & Raffel 2022) minimises the squares, so that one
    expert far from the others moves it less. Where Σₘ λₘFₘ = 0 the weights are λₘ.
    """

    statistic = "fisher"
    scale_invariant = True

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares the weighted lower median of every entry.

        Args:
            inputs: θₘ, λₘ ≥ 0 and Fₘ ≥ 0.

        Returns:
            The formula: every entry of its result is one of the experts'. The coefficients must
            not sum to zero.
        """
        coefficients = inputs.coefficients
        check_positive_sum(coefficients)

        def merged(name: str) -> Tensor:
            values = [wide(expert[name]) for expert in inputs.weights]
            weights = [
                coefficient * fisher[name].to(value)
                for coefficient, fisher, value in zip(
                    coefficients, inputs.statistics, values, strict=True
                )
            ]
            unknown = torch.stack(weights).sum(dim=0) == 0
            weights = [
                weight.masked_fill(unknown, coefficient)
                for coefficient, weight in zip(coefficients, weights, strict=True)
            ]
            return _lower_median(values, weights)

        return merged


def _lower_median(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """minₘ {vₘ : Σₙ wₙ[vₙ ≤ vₘ] ≥ Σₙ wₙ / 2}; for few models faster than sorting each entry."""
    # the roundings of M terms must not decide between two equal halves
    slack = 1 - 2 * len(values) * torch.finfo(values[0].dtype).eps
    half = torch.stack(list(weights)).sum(dim=0) / 2 * slack
    median = torch.full_like(half, torch.inf)
    for candidate in values:
        held = torch.zeros_like(half)
        for value, weight in zip(values, weights, strict=True):
            held.addcmul_(weight, (value <= candidate).to(weight))
        median = torch.where(held >= half, torch.minimum(median, candidate), median)
    return median
