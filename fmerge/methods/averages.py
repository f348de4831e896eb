"""Weighted averages of experts: plain, isotropic, and weighted by the diagonal Fisher."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fmerge.methods.base import MergeMethod, check_positive_sum, wide
from fmerge.params import Params


class Average(MergeMethod):
    """Plain average of the experts: θ = Σₘ θₘ / M."""

    uses_coefficients = False

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes θ = Σₘ θₘ / M.

        Args:
            base: Not used.
            experts: θₘ, of one layout.
            coefficients: Not used.
            fishers: Not used.

        Returns:
            The average, tensor by tensor.
        """
        return _isotropic(experts, [1.0] * len(experts))


class Isotropic(MergeMethod):
    """Average weighted by one number per expert: θ = Σₘ λₘθₘ / Σₘ λₘ.

    Fisher merging with every Fisher equal to one (Matena & Raffel 2022, section 3.1).
    """

    only_ratios = True

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes θ = Σₘ λₘθₘ / Σₘ λₘ.

        Args:
            base: Not used.
            experts: θₘ, of one layout.
            coefficients: λₘ ≥ 0; only their ratios matter.
            fishers: Not used.

        Returns:
            The weighted average, tensor by tensor.

        Raises:
            ValueError: If the coefficients sum to zero.
        """
        check_positive_sum(coefficients)
        return _isotropic(experts, coefficients)


class FisherMerge(MergeMethod):
    """Average weighted by the diagonal Fishers: θ = Σₘ λₘF̂ₘθₘ / Σₘ λₘF̂ₘ, elementwise.

    Matena & Raffel 2022, equation 4 for a diagonal Fisher, with the reference's three options.

    Args:
        floor: F̂ = max(F, floor): the least information an entry is given.
        favor_target: Raise only the first expert's Fisher to the floor, so that an entry about
            which no expert has information keeps the target's value.
        normalize: Divide λₘ by ‖Fₘ‖₂ over all parameters, so that experts whose Fishers are of
            another scale weigh the same.
    """

    fisher_at: ClassVar[Literal["expert", "scaled"] | None] = "expert"
    only_ratios = True

    def __init__(
        self, floor: float = 1e-6, favor_target: bool = True, normalize: bool = True
    ) -> None:
        self.floor = floor
        self.favor_target = favor_target
        self.normalize = normalize

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes θ = Σₘ λₘF̂ₘθₘ / Σₘ λₘF̂ₘ.

        Args:
            base: Kept where Σₘ λₘF̂ₘ = 0; without one, or with ``favor_target``, the first expert
                is kept there.
            experts: θₘ, of one layout, the target first.
            coefficients: λₘ ≥ 0; only their ratios matter.
            fishers: Fₘ ≥ 0, of that layout.

        Returns:
            The weighted average, tensor by tensor.

        Raises:
            ValueError: If there are no Fishers, or the coefficients sum to zero.
        """
        if fishers is None:
            raise ValueError("FisherMerge needs one diagonal Fisher per expert")
        check_positive_sum(coefficients)
        weights = list(coefficients)
        if self.normalize:
            weights = [
                weight / _norm(fisher) for weight, fisher in zip(weights, fishers, strict=True)
            ]
        fallback = experts[0] if base is None or self.favor_target else base
        merged: Params = {}
        for name, reference in experts[0].items():
            numerator = torch.zeros_like(wide(reference))
            denominator = torch.zeros_like(numerator)
            for m, (expert, fisher) in enumerate(zip(experts, fishers, strict=True)):
                floored = m == 0 or not self.favor_target
                information = fisher[name].to(numerator)
                weight = weights[m] * (
                    information.clamp_min(self.floor) if floored else information
                )
                numerator.addcmul_(weight, wide(expert[name]))
                denominator.add_(weight)
            kept = fallback[name].to(numerator)
            mean = torch.where(denominator > 0, numerator / denominator, kept)
            merged[name] = mean.to(reference)
        return merged


def _isotropic(experts: Sequence[Params], coefficients: Sequence[float]) -> Params:
    total = float(sum(coefficients))
    merged: Params = {}
    for name, reference in experts[0].items():
        mean = torch.zeros_like(wide(reference))
        for expert, coefficient in zip(experts, coefficients, strict=True):
            mean.add_(expert[name], alpha=coefficient / total)
        merged[name] = mean.to(reference)
    return merged


def _norm(fisher: Params) -> float:
    """‖F‖₂ over all parameters; 1 for an all-zero Fisher, which then weighs nothing anyway."""
    norms: list[Tensor] = [torch.linalg.vector_norm(tensor).double() for tensor in fisher.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms))) or 1.0
