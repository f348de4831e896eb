"""Methods that add task vectors τₘ = θₘ − θ₀ to a base."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from fmerge.methods.base import MergeMethod
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
            total = origin.clone()
            for expert, coefficient in zip(experts, coefficients, strict=True):
                total.add_(expert[name] - origin, alpha=coefficient)
            merged[name] = total
        return merged


class DFMerge(MergeMethod):
    """Dynamic Fisher-weighted merging: θ = θ₀ + M · Σₘ Fₘλₘτₘ / Σₘ Fₘ, elementwise.

    Lee et al., NAACL 2025, section 3: Fₘ is the diagonal Fisher of task m at θ₀ + λₘτₘ, so it
    moves with λ. Where all Fishers are equal it is task arithmetic.

    Args:
        epsilon: Added to every Fisher entry, as the reference does; where no expert has
            information the merge is then task arithmetic. At 0 such entries keep θ₀.
    """

    fisher_at: ClassVar[Literal["expert", "scaled"] | None] = "scaled"
    needs_base = True

    def __init__(self, epsilon: float = 1e-12) -> None:
        self.epsilon = epsilon

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes θ = θ₀ + M · Σₘ (Fₘ + ε)λₘ(θₘ − θ₀) / Σₘ (Fₘ + ε).

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
        merged: Params = {}
        for name, origin in base.items():
            numerator, denominator = torch.zeros_like(origin), torch.zeros_like(origin)
            for expert, coefficient, fisher in zip(experts, coefficients, fishers, strict=True):
                weight = fisher[name].to(origin) + self.epsilon
                numerator.addcmul_(weight, expert[name] - origin, value=coefficient)
                denominator.add_(weight)
            step = torch.where(denominator > 0, numerator / denominator, torch.zeros_like(origin))
            merged[name] = origin + len(experts) * step
        return merged
