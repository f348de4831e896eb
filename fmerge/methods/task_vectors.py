"""Methods that add task vectors τₘ = θₘ − θ₀ to a base."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fmerge.errors import check_within
from fmerge.methods.base import Statistic
from fmerge.methods.elementwise import Chunk, Elementwise, Formula


class TaskArithmetic(Elementwise):
    """Sum of scaled task vectors: θ = θ₀ + Σₘ λₘτₘ (Ilharco et al. 2023, section 2)."""

    needs_base = True

    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares θ = θ₀ + Σₘ λₘ(θₘ − θ₀).

        Args:
            coefficients: λₘ.
            scales: Not used.

        Returns:
            The formula.
        """

        def entries(chunk: Chunk) -> None:
            merged, base, experts, _, (vector, *_) = chunk
            merged.copy_(base)
            for expert, coefficient in zip(experts, coefficients, strict=True):
                merged.add_(torch.sub(expert, base, out=vector), alpha=coefficient)

        return entries


class DFMerge(Elementwise):
    """Dynamic Fisher-weighted merging: θ = θ₀ + M · Σₘ wₘλₘτₘ / Σₘ wₘ, elementwise.

    Lee et al., NAACL 2025, section 3, has wₘ = Fₘ, the diagonal Fisher of task m at θ₀ + λₘτₘ,
    which moves with λ. Where all weights are equal it is task arithmetic. The tempered family
    around it is ours: wₘ = (Fₘ/F̄ₘ + δ)^α with ``normalize``, else wₘ = (Fₘ + δF̄ₘ)^α, where F̄ₘ is
    the mean of Fₘ over all entries of all tensors. The defaults are the paper's form.

    Args:
        epsilon: Added to every Fisher entry, as the reference does; where no expert has
            information the merge is then task arithmetic. At 0 such entries keep θ₀.
        alpha: The power α ≥ 0: 1 trusts the Fishers as they are, 0 is task arithmetic.
        damping: δ ≥ 0, in units of each task's mean Fisher: keeps entries with little
            information from being decided by the ratio of two small numbers.
        normalize: Divide each Fisher by its mean, so that tasks whose Fishers are of another
            scale weigh the same.
    """

    statistic: ClassVar[Statistic | None] = "moving fisher"
    needs_base = True

    def __init__(
        self,
        epsilon: float = 1e-12,
        alpha: float = 1.0,
        damping: float = 0.0,
        normalize: bool = False,
    ) -> None:
        check_within("epsilon", epsilon, "[0, inf)")
        check_within("alpha", alpha, "[0, inf)")
        check_within("damping", damping, "[0, inf)")
        self.epsilon = epsilon
        self.alpha = alpha
        self.damping = damping
        self.normalize = normalize

    def scale(self, fisher: Mapping[str, Tensor]) -> float:
        """Computes F̄ over all entries of all tensors, where it is needed.

        Args:
            fisher: Fₘ.

        Returns:
            The mean, or 1.
        """
        if self.alpha == 0 or not (self.normalize or self.damping):
            return 1.0
        total = sum(float(tensor.sum(dtype=torch.float64)) for tensor in fisher.values())
        return total / sum(tensor.numel() for tensor in fisher.values())

    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares θ = θ₀ + M · Σₘ wₘλₘ(θₘ − θ₀) / Σₘ wₘ.

        Args:
            coefficients: λₘ.
            scales: F̄ₘ, or 1.

        Returns:
            The formula.
        """
        if self.alpha == 0:  # all weights are one: the very numbers, without M · (1/M)
            return TaskArithmetic().formula(coefficients, scales)
        least = [float(self._weigh(torch.zeros(1), mean, out=torch.zeros(1))) for mean in scales]
        positive = sum(least) > 0  # then it is known of every total, whatever the Fishers are

        def entries(chunk: Chunk) -> None:
            merged, base, experts, fishers, (total, weight, vector) = chunk
            rows = zip(experts, coefficients, fishers, scales, strict=True)
            for m, (expert, coefficient, fisher, mean) in enumerate(rows):
                share = self._weigh(fisher, mean, out=weight if m else total)
                torch.sub(expert, base, out=vector)
                sum_before = merged if m else merged.new_zeros(())
                torch.addcmul(sum_before, share, vector, value=coefficient, out=merged)
                if m:
                    total.add_(share)
            if positive or total.min() > 0:  # much faster than a mask, which is hardly ever needed
                torch.addcdiv(base, merged, total, value=len(experts), out=merged)
                return
            shift = torch.where(total > 0, merged / total, 0.0)
            torch.add(base, shift, alpha=len(experts), out=merged)

        return entries

    def _weigh(self, fisher: Tensor, mean: float, out: Tensor) -> Tensor:
        torch.add(fisher, self.epsilon, out=out)
        if self.normalize:
            out.div_(mean or 1.0).add_(self.damping)
        elif self.damping:
            out.add_(self.damping * mean)
        if self.alpha != 1:
            out.pow_(self.alpha)
        return out
