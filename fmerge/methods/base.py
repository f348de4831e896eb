"""What every merging method is: a pure formula over named tensors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from fmerge.params import Params


class MergeMethod(ABC):
    """Turns a base, M experts, M coefficients and M statistics into merged tensors.

    A method declares what it needs and never fetches it. Inputs are only read; letters follow the
    field: θ₀ base, θₘ expert, τₘ = θₘ − θ₀ task vector, λₘ coefficient, Fₘ diagonal Fisher.

    Attributes:
        fisher_at: Where each expert's diagonal Fisher must be taken: ``"expert"`` at θₘ, once;
            ``"scaled"`` at θ₀ + λₘτₘ, anew for every λ; ``None``: not needed.
        needs_base: Whether the formula uses θ₀.
        uses_coefficients: Whether λ changes the result, so that a search makes sense.
    """

    fisher_at: ClassVar[Literal["expert", "scaled"] | None] = None
    needs_base: ClassVar[bool] = False
    uses_coefficients: ClassVar[bool] = True

    @abstractmethod
    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sequence[Params] | None = None,
    ) -> Params:
        """Computes the merged tensors.

        Args:
            base: θ₀, of the experts' layout; None where ``needs_base`` is False.
            experts: θₘ, M sets of tensors of one layout, the target task's expert first.
            coefficients: λₘ, M numbers in [0, 1].
            fishers: Fₘ ≥ 0, M sets of tensors of that layout; None where ``fisher_at`` is None.

        Returns:
            New tensors of the experts' layout and dtype.
        """
