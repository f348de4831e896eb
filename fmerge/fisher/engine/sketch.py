"""Random sketches: few numbers by which two gradients are compared without either being held.

Of a gradient D (a, b), b all its dimensions but the first, S = L D Rᵀ (k, k) is kept; L (k, a) and
R (k, b) hold independent normal numbers of variance 1/k, so that E‖S‖² = ‖D‖². S is linear in D,
and zero for a D ≠ 0 with probability zero. A side of at most k entries is kept as it is.

A difference of 10, 100 or 1000 times what is tolerated looks tolerable with probability 6e-6, 3e-13
or 5e-21 (k = 8): D of rank one is the worst, whose ‖S‖²/‖D‖² is a product of two independent χ²/k.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

SIDE = 8
"""k, rows and columns of a sketch."""


@dataclass(frozen=True)
class Sketch:
    """What gradients of one shape are multiplied by.

    Attributes:
        left: L (k, a).
        right: R (k, b).
    """

    left: Tensor
    right: Tensor

    def zero(self) -> Tensor:
        """Gives the sketch of zero.

        Returns:
            Zeros (k, k).
        """
        return self.left.new_zeros(len(self.left), len(self.right))

    def of(self, gradient: Tensor) -> Tensor:
        """Sketches a gradient.

        Args:
            gradient: D, a·b entries in any shape.

        Returns:
            L D Rᵀ (k, k).
        """
        matrix = gradient.reshape(self.left.shape[1], self.right.shape[1])
        return self.left @ matrix.to(self.left.dtype) @ self.right.T

    def of_product(self, left: Tensor, right: Tensor) -> Tensor:
        """Sketches Σᵢ left[i] ⊗ right[i], which is never formed.

        Args:
            left: (i, a).
            right: (i, b).

        Returns:
            Its sketch (k, k).
        """
        sides = left.to(self.left.dtype) @ self.left.T, right.to(self.right.dtype) @ self.right.T
        return sides[0].T @ sides[1]

    def of_rows(self, ids: Tensor, values: Tensor) -> Tensor:
        """Sketches a gradient whose row ids[i] receives values[i].

        Args:
            ids: Rows (i,).
            values: (i, b).

        Returns:
            Its sketch (k, k).
        """
        return self.left[:, ids] @ (values.to(self.right.dtype) @ self.right.T)


@dataclass
class Sketches:
    """Draws L and R, once for each length of a side.

    Attributes:
        generator: Where the numbers come from.
    """

    generator: torch.Generator
    _sides: dict[tuple[str, int, torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    def like(self, parameter: Tensor) -> Sketch:
        """Gives the sketch of a parameter's gradients.

        Args:
            parameter: The parameter.

        Returns:
            The same sketch each time.
        """
        length = len(parameter) if parameter.ndim else 1
        width = parameter.numel() // max(1, length)
        return Sketch(self._side("left", length, parameter), self._side("right", width, parameter))

    def _side(self, which: str, length: int, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (which, length, dtype, like.device)
        if key not in self._sides:
            if length > SIDE:
                drawn = torch.randn(SIDE, length, generator=self.generator, dtype=dtype)
                self._sides[key] = drawn.div_(SIDE**0.5).to(like.device)
            else:
                self._sides[key] = torch.eye(length, dtype=dtype, device=like.device)
        return self._sides[key]
