"""The forms of a parameter's per-example gradients through one of its uses.

No form holds n gradients of the parameter's shape: each holds what they are made of.

Letters: n example, t token (any position inside an example), a and b the two sides of a matrix,
u an entry of a batch-independent tensor.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fmerge.fisher.engine.sketch import Sketch


class Gradients(ABC):
    """The gradients of one parameter through one of its uses, one for each example."""

    @property
    @abstractmethod
    def examples(self) -> int:
        """The number of examples."""

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
class Outer(Gradients):
    """Gradients Σₜ left[n,t,a] right[n,t,b] of a matrix (a, b).

    Attributes:
        left: (n, t, a).
        right: (n, t, b).
    """

    left: Tensor
    right: Tensor

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.left)

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds Σₜ left[n,t] ⊗ right[n,t] to the buffer."""
        product = self.left[n].T @ self.right[n]
        buffer.add_(product.view(buffer.shape))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches Σₙₜ left[n,t] ⊗ right[n,t], which is never formed."""
        return sketch.of_product(self.left.flatten(0, 1), self.right.flatten(0, 1))


@final
@dataclass(frozen=True)
class Summed(Gradients):
    """Gradients that are summed over tokens already, one tensor for each example.

    Attributes:
        values: (n, …), … of the parameter's number of entries.
    """

    values: Tensor

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.values)

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds values[n] to the buffer."""
        buffer.add_(self.values[n].view(buffer.shape))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches Σₙ values[n]."""
        return sketch.of(self.values.sum(0))


@final
@dataclass(frozen=True)
class Rows(Gradients):
    """Gradients of a table whose row ids[n,t] receives values[n,t].

    Attributes:
        ids: Rows (n, t).
        values: (n, t, b).
    """

    ids: Tensor
    values: Tensor

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.values)

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds values[n,t] to row ids[n,t] of the buffer, for every t."""
        buffer.index_add_(0, self.ids[n], self.values[n].to(buffer.dtype))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum over n, without the rows that nothing is added to."""
        return sketch.of_rows(self.ids.flatten(), self.values.flatten(0, 1))


@final
@dataclass(frozen=True)
class Scattered(Gradients):
    """Gradients of a parameter whose entry entries[u] receives values[n,u].

    Attributes:
        entries: Indices of the entries (u,), -1 for a value that belongs to no entry.
        values: (n, u).
    """

    entries: Tensor
    values: Tensor

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.values)

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds values[n,u] to entry entries[u] of the buffer, for every u."""
        own = self.values[n : n + 1].to(buffer.dtype)
        buffer.add_(self.scatter(own, buffer.numel()).view(buffer.shape))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum over n."""
        count = sketch.left.shape[1] * sketch.right.shape[1]
        return sketch.of(self.scatter(self.values.sum(0, keepdim=True), count))

    def scatter(self, values: Tensor, count: int) -> Tensor:
        """Adds values to the entries that they belong to.

        Args:
            values: (k, u).
            count: The parameter's number of entries.

        Returns:
            Gradients (k, count).
        """
        # one entry more, which -1 becomes below, takes the values that belong to none
        gradients = values.new_zeros(len(values), count + 1)
        places = self.entries.to(values.device).remainder(count + 1)
        return gradients.scatter_add_(1, places.expand(len(values), -1), values)[:, :-1]


@final
@dataclass(frozen=True)
class Pullback(Gradients):
    """Gradients (∂u/∂θ)ᵀ values[n] through a batch-independent tensor u.

    Attributes:
        source: u, with its graph, or the parameter itself.
        values: ∂ℓₙ/∂u (n, …).
        parameter: The parameter θ that u is computed from.
    """

    source: Tensor
    values: Tensor
    parameter: Tensor

    @property
    def examples(self) -> int:
        """The number of examples."""
        return len(self.values)

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds (∂u/∂θ)ᵀ values[n] to the buffer."""
        buffer.add_(self._pull(self.values[n]))

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches (∂u/∂θ)ᵀ Σₙ values[n]."""
        return sketch.of(self._pull(self.values.sum(0)))

    def _pull(self, values: Tensor) -> Tensor:
        # the graph of u is needed again, for other examples and the next candidate
        (gradient,) = torch.autograd.grad(self.source, self.parameter, values, retain_graph=True)
        return gradient
