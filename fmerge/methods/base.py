"""What every merging method is: a pure formula over named tensors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fmerge.params import Params

Statistic = Literal["fisher", "moving fisher", "gram"]
"""What a formula may know of an expert beside its weights; see ``MergeMethod.statistic``."""


class MergeMethod(ABC):
    """Turns a base, M experts, M coefficients and M statistics into merged tensors.

    A method declares what it needs and never fetches it. Inputs are only read; letters follow the
    field: θ₀ base, θₘ expert, τₘ = θₘ − θ₀ task vector, λₘ coefficient, Fₘ diagonal Fisher.

    Attributes:
        statistic: What is needed of each expert: ``"fisher"``, its diagonal Fisher at θₘ, once;
            ``"moving fisher"``, that at θ₀ + λₘτₘ, anew for every λ; ``"gram"``, a ``Gram`` of
            what enters each linear layer at θₘ, once; ``None``: nothing.
        needs_base: Whether the formula uses θ₀.
        uses_coefficients: Whether λ changes the result, so that a search makes sense.
        scale_invariant: Whether it does so by their ratios alone, so that c·λ is the same merge.
    """

    statistic: ClassVar[Statistic | None] = None
    needs_base: ClassVar[bool] = False
    uses_coefficients: ClassVar[bool] = True
    scale_invariant: bool = False

    def check_count(self, count: int) -> None:  # noqa: B027  # most take any number
        """Proves that the formula takes that many experts.

        Args:
            count: M.

        Raises:
            UserError: If it does not.
        """

    @abstractmethod
    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        statistics: Sequence[Any] | None = None,
        /,
    ) -> Params:
        """Computes the merged tensors.

        Args:
            base: θ₀, of the experts' layout; None where ``needs_base`` is False.
            experts: θₘ, M sets of tensors of one layout, the target task's expert first.
            coefficients: λₘ, M numbers in [0, 1].
            statistics: M of what ``statistic`` names, by tensor: Fₘ ≥ 0 of that layout, or a
                ``Gram`` where there is one; None where ``statistic`` is None.

        Returns:
            New tensors of the experts' layout and dtype.
        """


def wide(tensor: Tensor) -> Tensor:
    """Raises a tensor to the precision that formulas are computed in: float32 at least.

    Args:
        tensor: Weights or a Fisher, of any floating dtype.

    Returns:
        The tensor itself where it is float32 or float64, else a float32 copy.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_positive_sum(coefficients: Sequence[float]) -> None:
    """Proves that a method which divides by Σₘ λₘ can do so.

    Args:
        coefficients: λₘ.

    Raises:
        ValueError: If they do not sum to more than zero.
    """
    if not sum(coefficients) > 0:
        raise ValueError(f"the coefficients {list(coefficients)} must have a positive sum")
