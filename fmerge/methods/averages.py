"""Weighted averages of experts: plain, isotropic, and weighted by the diagonal Fisher."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fmerge.methods.base import check_positive_sum
from fmerge.methods.elementwise import Chunk, Elementwise, Formula
from fmerge.methods.gradients import inner_products
from fmerge.methods.inputs import MergeInputs, wide
from fmerge.params import Params

_SMALL_NORM = 1e-9
"""Norms below this may have lost entries whose squares vanish in float32."""


class Average(Elementwise):
    """Plain average of the experts: θ = Σₘ θₘ / M."""

    uses_coefficients = False

    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares θ = Σₘ θₘ / M.

        Args:
            coefficients: λₘ; this formula does not use them.
            scales: Empty; this formula needs no Fishers.

        Returns:
            The formula.
        """

        def entries(chunk: Chunk) -> None:
            _mean(chunk.merged, chunk.experts, [1.0] * len(chunk.experts))

        return entries


class Isotropic(Elementwise):
    """Average weighted by one number per expert: θ = Σₘ λₘθₘ / Σₘ λₘ.

    Fisher merging with every Fisher equal to one (Matena & Raffel 2022, section 3.1).
    """

    scale_invariant = True
    holds_average = True

    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares θ = Σₘ λₘθₘ / Σₘ λₘ.

        Args:
            coefficients: λₘ ≥ 0; only their ratios matter.
            scales: Empty; this formula needs no Fishers.

        Returns:
            The formula; the coefficients must not sum to zero.
        """
        check_positive_sum(coefficients)

        def entries(chunk: Chunk) -> None:
            _mean(chunk.merged, chunk.experts, coefficients)

        return entries

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Computes ∂L/∂λₘ = ⟨∂L/∂θ, θₘ − θ⟩ / Σₖ λₖ; see the base class.

        Args:
            inputs: The inputs of the merge, checked.
            gradient: ∂L/∂θ by tensor.

        Returns:
            One number for each expert (m,), in float64.
        """
        # relative to one origin, by which θ differs as the weighted mean of the θₘ does
        products, total = inner_products(inputs, gradient), sum(inputs.coefficients)
        shares = products.new_tensor(inputs.coefficients) / total
        return (products - shares @ products) / total


class FisherMerge(Elementwise):
    """Average weighted by the diagonal Fishers: θ = Σₘ λₘF̂ₘθₘ / Σₘ λₘF̂ₘ, elementwise.

    Matena & Raffel 2022, equation 4 for a diagonal Fisher, with the reference's three options.
    Where Σₘ λₘF̂ₘ = 0 the result is the base; without a base, or with ``favor_target``, it is the
    first expert.

    Args:
        floor: Lower bound of a Fisher's entries: F̂ = max(F, floor).
        favor_target: Raise only the first expert's Fisher to the floor, so that an entry about
            which no expert has information keeps the target's value.
        normalize: Divide λₘ by ‖Fₘ‖₂ over all parameters, so that experts whose Fishers differ in
            scale weigh the same.
    """

    statistic = "fisher"
    scale_invariant = True

    def __init__(
        self, floor: float = 1e-6, favor_target: bool = True, normalize: bool = True
    ) -> None:
        self.floor = floor
        self.favor_target = favor_target
        self.normalize = normalize

    def statistic_scale(self, statistic: Mapping[str, Tensor]) -> float:
        """Computes ‖F‖₂ over all parameters, where it is needed.

        Args:
            statistic: Fₘ.

        Returns:
            The norm; 1 for an all-zero Fisher, which then weighs nothing anyway.
        """
        if not self.normalize:
            return 1.0
        norm = _norm(statistic.values())
        if norm < _SMALL_NORM or not math.isfinite(norm):
            # a power of two: it rounds nothing, so that the norm is continuous in the scale
            power = math.frexp(_largest(statistic.values()))[1]
            scale = math.ldexp(1.0, -power)
            norm = math.ldexp(
                _norm(tensor.double() * scale for tensor in statistic.values()), power
            )
        return norm or 1.0

    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares θ = Σₘ λₘF̂ₘθₘ / Σₘ λₘF̂ₘ.

        Args:
            coefficients: λₘ ≥ 0; only their ratios matter.
            scales: ‖Fₘ‖₂, or 1.

        Returns:
            The formula; the coefficients must not sum to zero.
        """
        check_positive_sum(coefficients)
        weights = [one / scale for one, scale in zip(coefficients, scales, strict=True)]

        def entries(chunk: Chunk) -> None:
            merged, base, experts, fishers, (total, raised, _) = chunk
            rows = zip(experts, fishers, weights, strict=True)
            for m, (expert, fisher, weight) in enumerate(rows):
                information = fisher
                if m == 0 or not self.favor_target:
                    information = torch.clamp_min(fisher, self.floor, out=raised)
                if m == 0:
                    torch.mul(information, weight, out=total)
                    torch.mul(total, expert, out=merged)
                    continue
                merged.addcmul_(information, expert, value=weight)
                total.add_(information, alpha=weight)
            if total.min() > 0:  # the usual case, much faster than a mask
                merged.div_(total)
                return
            otherwise = experts[0] if self.favor_target else base
            merged.copy_(torch.where(total > 0, merged / total, otherwise))

        return entries

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Computes ∂L/∂λₘ = Σᵢ ∂L/∂θᵢ F̂ₘᵢ(θₘᵢ − θᵢ) / Σₖ λₖF̂ₖᵢ; see the base class.

        Args:
            inputs: The inputs of the merge, checked.
            gradient: ∂L/∂θ by tensor.

        Returns:
            One number for each expert (m,), in float64; entries without information add nothing.
        """
        rows = []
        for name, one in gradient.items():
            experts = [wide(model[name]) for model in inputs.weights]
            weights = []
            for m, (statistic, scale) in enumerate(
                zip(inputs.statistics, inputs.scales, strict=True)
            ):
                fisher = statistic[name].to(experts[0])
                raised = m == 0 or not self.favor_target
                weights.append((fisher.clamp_min(self.floor) if raised else fisher) / scale)
            shares = experts[0].new_tensor(inputs.coefficients)
            total = torch.einsum("m,m...->...", shares, torch.stack(weights))
            merged = (
                sum(c * w * e for c, w, e in zip(shares, weights, experts, strict=True)) / total
            )
            slope = torch.where(total > 0, one.to(total) / total, 0.0)
            away = [w * (e - merged) for w, e in zip(weights, experts, strict=True)]
            rows.append(torch.stack([torch.where(total > 0, slope * a, 0.0).sum() for a in away]))
        return torch.stack(rows).double().sum(dim=0)


def _norm(tensors: Iterable[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(tensor).double() for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _largest(tensors: Iterable[Tensor]) -> float:
    return max((float(tensor.max()) for tensor in tensors if tensor.numel()), default=0.0)


def _mean(merged: Tensor, experts: Sequence[Tensor], weights: Sequence[float]) -> None:
    # equal weights: a sum can be exact, but a product with 1/M, which is rounded, cannot
    equal = len(set(weights)) == 1
    first, *shares = (1.0 if equal else weight / float(sum(weights)) for weight in weights)
    torch.mul(experts[0], first, out=merged)
    for expert, share in zip(experts[1:], shares, strict=True):
        merged.add_(expert, alpha=share)
    if equal:
        merged.div_(len(experts))
