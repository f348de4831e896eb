"""Fused experts of a mixture: each parameter holds the matrices of all experts.

Letters: n example, m pairs of a token and an expert that it is sent to, e expert, i input feature,
o output feature, a and b the two sides of an expert's matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from fmerge.fisher.engine.gradients import Gradients, Outer, Summed
from fmerge.fisher.engine.sketch import Sketch

_FLAGS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel")


def are_fused_experts(module: nn.Module) -> bool:
    """Tells the modules that transformers runs by any of its implementations of experts.

    Its decorator of such classes sets the flags; what they promise of ``forward`` is all that its
    own implementations know of the class too.

    Args:
        module: Any module.

    Returns:
        Whether it is one whose parameters are an upward and a downward matrix for each expert, and
        their biases.
    """
    if not all(hasattr(module, flag) for flag in (*_FLAGS, "num_experts", "_apply_gate")):
        return False
    if not hasattr(type(module).forward, "__wrapped__"):  # a subclass has a forward of its own
        return False
    return not module.has_post_expert_norm and not module._is_expert_parallel


@dataclass(frozen=True)
class Routing:
    """What the rules of experts read of a call.

    Attributes:
        experts: The expert of each pair (m,), ascending.
        owners: The example of each pair (m,), ascending for each expert.
        count: The number of experts.
        transposed: Whether matrices are (e, i, o), not (e, o, i).
    """

    experts: Tensor
    owners: Tensor
    count: int
    transposed: bool


@final
@dataclass(frozen=True)
class Routed(Gradients):
    """Gradients Σ left[m,a] right[m,b] of an expert's matrix, over an example's pairs with it.

    Attributes:
        left: (m, a).
        right: (m, b).
        routing: The expert and the example of each pair.
        count: The number of examples.
    """

    left: Tensor
    right: Tensor
    routing: Routing
    count: int

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self.count

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds one example's gradient to the buffer (e, a, b)."""
        own = self.routing.owners == n
        for expert in set(self.routing.experts[own].tolist()):
            pairs = own & (self.routing.experts == expert)
            buffer[expert] += (self.left[pairs].T @ self.right[pairs]).to(buffer.dtype)

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum over examples, of which one expert's is formed at a time."""
        result = sketch.zero()
        for expert, pairs in self._pairs():
            product = (self.left[pairs].T @ self.right[pairs]).flatten()
            row = sketch.right @ product.to(sketch.right.dtype)
            result += torch.outer(sketch.left[:, expert], row)
        return result

    def by_expert(self) -> Iterator[tuple[int, Outer]]:
        """Splits the gradients.

        Yields:
            An expert, and the gradients of its matrix for the examples that it has pairs of.
        """
        for expert, pairs in self._pairs():
            owners, counts = torch.unique_consecutive(
                self.routing.owners[pairs], return_counts=True
            )
            longest = int(counts.max())
            first = counts.cumsum(0) - counts
            position = torch.arange(pairs.stop - pairs.start, device=counts.device)
            start = torch.arange(len(counts), device=counts.device) * longest - first
            place = position + start.repeat_interleave(counts)
            sides = [
                side
                .new_zeros(len(owners) * longest, side.shape[1])
                .index_copy_(0, place, side[pairs])
                .view(len(owners), longest, -1)
                for side in (self.left, self.right)
            ]
            yield expert, Outer(*sides)

    def _pairs(self) -> Iterator[tuple[int, slice]]:
        experts, counts = torch.unique_consecutive(self.routing.experts, return_counts=True)
        start = 0
        for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
            yield expert, slice(start, start + count)
            start += count


def expert_weight(layer: Routing, x: Tensor, g: Tensor, n: int) -> Routed:
    """Matrices (e, o, i), or (e, i, o): Σ over an example's pairs of g[m,o] x[m,i]."""
    present = (g != 0).any(1)  # padding and, in the last layer, all but the tokens that are read
    x, g = x[present].to(g.dtype), g[present]
    routing = Routing(layer.experts[present], layer.owners[present], layer.count, layer.transposed)
    return Routed(*((x, g) if layer.transposed else (g, x)), routing, n)


def expert_bias(layer: Routing, x: Tensor, g: Tensor, n: int) -> Summed:
    """Biases (e, o): Σ over an example's pairs with an expert of g[m,o]."""
    wide = g.to(torch.promote_types(g.dtype, torch.float32))
    values = wide.new_zeros(n * layer.count, g.shape[1])
    values.index_add_(0, layer.owners * layer.count + layer.experts, wide)
    return Summed(values.view(n, layer.count, -1))


EXPERTS: Any = {
    name: expert_bias if name.endswith("bias") else expert_weight
    for matrix in ("gate_up_proj", "up_proj", "down_proj")
    for name in (matrix, f"{matrix}_bias")
}
"""By name, the rule of each parameter."""
