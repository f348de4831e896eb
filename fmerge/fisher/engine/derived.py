"""From the gradients of a tensor that is computed from a parameter to those of the parameter.

Letters: n example, u a tensor computed from the parameter θ alone.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fmerge.fisher.engine.gradients import Gradients, Outer
from fmerge.fisher.engine.sketch import Sketch


@final
@dataclass(frozen=True)
class Part(Gradients):
    """Gradients of rows of a parameter; those of all other rows are zero.

    Attributes:
        own: The gradients of the rows.
        start: The first of them.
        stop: The one after the last.
        shape: The parameter's shape.
    """

    own: Gradients
    start: int
    stop: int
    shape: torch.Size

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self.own.examples

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds one example's gradient to the rows."""
        self.own.add_gradient(n, buffer[self.start : self.stop])

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum, which is formed, as the self-check alone needs it."""
        return _formed_total(self, sketch, self.shape)


@final
@dataclass(frozen=True)
class Through(Gradients):
    """Gradients (∂u/∂θ)ᵀ own[n] through a batch-independent tensor u, one example at a time.

    Attributes:
        own: ∂ℓₙ/∂u.
        source: u, with its graph.
        parameter: θ.
    """

    own: Gradients
    source: Tensor
    parameter: Tensor

    @property
    def examples(self) -> int:
        """The number of examples."""
        return self.own.examples

    def add_gradient(self, n: int, buffer: Tensor) -> None:
        """Adds (∂u/∂θ)ᵀ own[n] to the buffer."""
        values = torch.zeros_like(self.source, requires_grad=False)
        self.own.add_gradient(n, values)
        # the graph of u is needed again, for other examples and the next candidate
        (gradient,) = torch.autograd.grad(self.source, self.parameter, values, retain_graph=True)
        buffer.add_(gradient)

    def total(self, sketch: Sketch) -> Tensor:
        """Sketches the sum, which is formed, as the self-check alone needs it."""
        return _formed_total(self, sketch, self.parameter.shape)


def placed(own: Gradients, u: Tensor, parameter: Tensor) -> Gradients:
    """Gives a parameter's gradients through u in the cheapest form that is right.

    Args:
        own: The gradients of u.
        u: The parameter, a view of it, or any tensor computed from it.
        parameter: θ.

    Returns:
        The gradients of θ.
    """
    if u is parameter:
        return own
    rows = _rows_in(u, parameter)
    if rows is not None:
        start, stop = rows
        whole = stop - start == len(parameter)
        return own if whole else Part(own, start, stop, parameter.shape)
    if u.ndim == 2 and isinstance(own, Outer) and _rows_in(u.T, parameter) is not None:
        return placed(Outer(own.right, own.left), u.T, parameter)
    return Through(own, u, parameter)


def _rows_in(u: Tensor, parameter: Tensor) -> tuple[int, int] | None:
    """Tells by their place in memory which rows of a parameter a tensor is; None if it is not."""
    if u.dtype != parameter.dtype or u.device != parameter.device or not parameter.ndim:
        return None
    if u.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr():
        return None
    if not (u.is_contiguous() and parameter.is_contiguous()):
        return None
    width = max(1, parameter.numel() // max(1, len(parameter)))
    start = u.storage_offset() - parameter.storage_offset()
    inside = start >= 0 and start + u.numel() <= parameter.numel()
    if not inside or start % width or u.numel() % width:
        return None
    return start // width, (start + u.numel()) // width


def _formed_total(own: Gradients, sketch: Sketch, shape: torch.Size) -> Tensor:
    buffer = torch.zeros(shape, dtype=sketch.left.dtype, device=sketch.left.device)
    for n in range(own.examples):
        own.add_gradient(n, buffer)
    return sketch.of(buffer)
