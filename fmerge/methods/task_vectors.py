"""Methods that add task vectors τₘ = θₘ − θ₀ to a base."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fmerge.methods.base import MergeMethod, check_within, wide
from fmerge.params import Params


class TaskArithmetic(MergeMethod):
    """Sum of scaled task vectors: θ = θ₀ + Σₘ λₘτₘ (Ilharco et al. 2023, section 2)."""

    needs_base = True

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes θ = θ₀ + Σₘ λₘ(θₘ − θ₀).

        Args:
            base: θ₀.
            experts: θₘ, of its layout.
            coefficients: λₘ.
            fishers: Not used.

        Returns:
            The merged tensors.

        Raises:
            ValueError: If there is no base.
        """
        if base is None:
            raise ValueError("TaskArithmetic needs the base model")
        merged: Params = {}
        for name, origin in base.items():
            start = wide(origin)
            total = start.clone()
            for expert, coefficient in zip(experts, coefficients, strict=True):
                total.add_(expert[name] - start, alpha=coefficient)
            merged[name] = total.to(origin)
        return merged


class DFMerge(MergeMethod):
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

    fisher_at: ClassVar[Literal["expert", "scaled"] | None] = "scaled"
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

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes θ = θ₀ + M · Σₘ wₘλₘ(θₘ − θ₀) / Σₘ wₘ.

        Args:
            base: θ₀.
            experts: θₘ, of its layout.
            coefficients: λₘ.
            fishers: Fₘ ≥ 0, each taken at θ₀ + λₘτₘ, of that layout.

        Returns:
            The merged tensors.

        Raises:
            ValueError: If there is no base or there are no Fishers.
        """
        if base is None or fishers is None:
            raise ValueError("DFMerge needs the base model and one diagonal Fisher per expert")
        if self.alpha == 0:  # all weights are one: the very numbers, without M · (1/M)
            return TaskArithmetic().merge(base, experts, coefficients)
        means = [_mean(fisher) if self.normalize or self.damping else 0.0 for fisher in fishers]
        merged: Params = {}
        for name, origin in base.items():
            start = wide(origin)
            numerator, denominator = torch.zeros_like(start), torch.zeros_like(start)
            rows = zip(experts, coefficients, fishers, means, strict=True)
            for expert, coefficient, fisher, mean in rows:
                weight = self._weight(fisher[name].to(start), mean)
                numerator.addcmul_(weight, expert[name] - start, value=coefficient)
                denominator.add_(weight)
            step = torch.where(denominator > 0, numerator / denominator, torch.zeros_like(start))
            merged[name] = (start + len(experts) * step).to(origin)
        return merged

    def _weight(self, fisher: Tensor, mean: float) -> Tensor:
        weight = fisher + self.epsilon
        if self.normalize:
            weight = weight / (mean or 1.0) + self.damping
        elif self.damping:
            weight = weight + self.damping * mean
        return weight if self.alpha == 1 else weight**self.alpha


def _mean(fisher: Params) -> float:
    """F̄ over all entries of all tensors."""
    total = sum(float(tensor.sum(dtype=torch.float64)) for tensor in fisher.values())
    return total / sum(tensor.numel() for tensor in fisher.values())
