"""Random sketches: a few numbers by which two gradients are compared without holding either.

A gradient D (a, b), b the product of all dimensions but the first, has the sketch S = L D Rᵀ of
shape (k, k). L (k, a) and R (k, b) hold independent normal numbers of variance 1/k, so that
E‖S‖² = ‖D‖². S is linear in D, and zero for D ≠ 0 with probability zero. A side of at most k
entries is not reduced.

A difference of 10, 100 or 1000 times the tolerance passes with probability 6e-6, 3e-13 or 5e-21
(k = 8). The worst D has rank one: its ‖S‖²/‖D‖² is a product of two independent χ²/k.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

SIDE = 8
"""k, the number of rows and columns of a sketch."""


@dataclass(frozen=True)
class Sketch:
    """The matrices L and R that sketch gradients of one shape.

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
        """Sketches Σᵢ left[i] ⊗ right[i] without forming it.

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
    """Draws L and R once for each length of a side, so that sketches can be compared.

    Attributes:
        generator: Source of the random numbers.
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
            else:  # nothing to save: the identity loses nothing
                self._sides[key] = torch.eye(length, dtype=dtype, device=like.device)
        return self._sides[key]
