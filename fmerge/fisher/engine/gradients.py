"""A parameter's gradients, example by example, from one use of it.

Letters: n example, t token (any position inside an example), a and b the two sides of a matrix.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fmerge.fisher.engine.sketch import Sketch


class Term(ABC):
    """The gradients of one parameter, one per example, through one of its uses."""

    @abstractmethod
    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds one example's gradient.

        Args:
            n: The example's position in the batch.
            buffer: What is added to, of the parameter's shape.
        """

    @abstractmethod
    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum of all examples' gradients.

        Args:
            sketch: Of the parameter's shape.

        Returns:
            The sketch (k, k).
        """


@final
@dataclass(frozen=True)
class Outer(Term):
    """Gradients Σₜ left[n,t,a] right[n,t,b] of a matrix (a, b).

    Attributes:
        left: (n, t, a).
        right: (n, t, b).
    """

    left: Tensor
    right: Tensor

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds Σₜ left[n,t] ⊗ right[n,t].

        Args:
            n: The example's position in the batch.
            buffer: Of the parameter's shape.
        """
        product = self.left[n].T @ self.right[n]
        buffer.add_(product.view(buffer.shape))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum over n.

        Args:
            sketch: Of the parameter's shape.

        Returns:
            The sketch (k, k).
        """
        return sketch.of_product(self.left.flatten(0, 1), self.right.flatten(0, 1))


@final
@dataclass(frozen=True)
class Summed(Term):
    """Gradients that were summed over tokens already.

    Attributes:
        values: (n, …), … of the parameter's number of entries.
    """

    values: Tensor

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds values[n].

        Args:
            n: The example's position in the batch.
            buffer: Of the parameter's shape.
        """
        buffer.add_(self.values[n].view(buffer.shape))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum over n.

        Args:
            sketch: Of the parameter's shape.

        Returns:
            The sketch (k, k).
        """
        return sketch.of(self.values.sum(0))


@final
@dataclass(frozen=True)
class Rows(Term):
    """Gradients of a table whose row ids[n,t] receives values[n,t].

    Attributes:
        ids: Rows (n, t).
        values: (n, t, b).
    """

    ids: Tensor
    values: Tensor

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds values[n,t] to row ids[n,t] for every t.

        Args:
            n: The example's position in the batch.
            buffer: Of the parameter's shape.
        """
        buffer.index_add_(0, self.ids[n], self.values[n].to(buffer.dtype))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum over n.

        Args:
            sketch: Of the parameter's shape.

        Returns:
            The sketch (k, k).
        """
        return sketch.of_rows(self.ids.flatten(), self.values.flatten(0, 1))


@final
@dataclass(frozen=True)
class Moved(Term):
    """Gradients of entries that were moved, repeated or left out.

    Attributes:
        entries: Numbers of the entries (u,), -1 for what is none.
        values: (n, u).
    """

    entries: Tensor
    values: Tensor

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds values[n] to the entries.

        Args:
            n: The example's position in the batch.
            buffer: Of the parameter's shape.
        """
        own = self.values[n : n + 1].to(buffer.dtype)
        buffer.add_(self.scattered(own, buffer.numel()).view(buffer.shape))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum over n.

        Args:
            sketch: Of the parameter's shape.

        Returns:
            The sketch (k, k).
        """
        count = sketch.left.shape[1] * sketch.right.shape[1]
        return sketch.of(self.scattered(self.values.sum(0, keepdim=True), count))

    def scattered(self, values: Tensor, count: int) -> Tensor:
        """Puts values in their places.

        Args:
            values: (k, u).
            count: The parameter's number of entries.

        Returns:
            Gradients (k, count).
        """
        gradients = values.new_zeros(len(values), count + 1)  # and one for what is none
        places = self.entries.to(values.device).remainder(count + 1)
        return gradients.scatter_add_(1, places.expand(len(values), -1), values)[:, :-1]


@final
@dataclass(frozen=True)
class Pulled(Term):
    """Gradients through a tensor that is computed from parameters alone, without a batch.

    Attributes:
        source: That tensor u, with its graph, or the parameter itself.
        values: ∂ℓₙ/∂u (n, …).
        parameter: The parameter θ below it.
    """

    source: Tensor
    values: Tensor
    parameter: Tensor

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds (∂u/∂θ)ᵀ values[n].

        Args:
            n: The example's position in the batch.
            buffer: Of the parameter's shape.
        """
        (gradient,) = torch.autograd.grad(
            self.source, self.parameter, self.values[n], retain_graph=True
        )
        buffer.add_(gradient)

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum over n.

        Args:
            sketch: Of the parameter's shape.

        Returns:
            The sketch (k, k).
        """
        (gradient,) = torch.autograd.grad(
            self.source, self.parameter, self.values.sum(0), retain_graph=True
        )
        return sketch.of(gradient)
