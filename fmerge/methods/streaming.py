"""Formulas entry by entry, computed in pieces that stay in the processor's cache."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat

import torch
from torch import Tensor

from fmerge.methods.base import MergeMethod
from fmerge.params import Between, Params, empty_like

PIECE = 1 << 17
"""Entries a thread takes at a time: what a formula holds of them fits into its cache."""

_ON_DEVICE = 1 << 24  # elsewhere there is no such cache, and few launches are better

Sources = Sequence[Mapping[str, Tensor]]
Formula = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], None]
"""Fills its first argument, the result, from θ₀ (θ₁ where there is no base), all θₘ and all Fₘ.

All are flat, of the same few entries and in float32 at least; all but the first are only read."""


class Elementwise(MergeMethod):
    """A method whose every entry depends on that entry of its inputs and on a few numbers.

    Its formula runs over pieces of the tensors, so that each input is read from memory once and
    nothing of a model's size is made but the result. A tensor that is not contiguous is copied
    for as long as its turn takes.
    """

    def scale(self, fisher: Mapping[str, Tensor]) -> float:
        """Measures a Fisher by the one number over all its tensors that the formula needs.

        Along a curve of Fishers it is interpolated as their entries are.

        Args:
            fisher: Fₘ.

        Returns:
            The number; 1 where none is needed, without reading the Fisher.
        """
        return 1.0

    @abstractmethod
    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares what computes a piece.

        Args:
            coefficients: λₘ.
            scales: What ``scale`` says of each Fₘ; empty where there are no Fishers.

        Returns:
            The formula, which keeps nothing between its calls.
        """

    @torch.no_grad()
    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        fishers: Sources | None = None,
        scales: Sequence[float] | None = None,
        out: Params | None = None,
    ) -> Params:
        """Computes the class's formula; see the base class.

        Args:
            base: θ₀, where the formula uses it.
            experts: θₘ, of one layout.
            coefficients: λₘ.
            fishers: Fₘ ≥ 0, of that layout, where the formula uses them; also interpolated ones.
            scales: What ``scale`` says of each Fₘ, where that is known already.
            out: Contiguous tensors of the experts' layout, dtypes and device to write to.

        Returns:
            ``out``, or new tensors where it is None.

        Raises:
            ValueError: If what the formula needs is missing, or the coefficients do not fit it.
        """
        name = type(self).__name__
        if self.needs_base and base is None:
            raise ValueError(f"{name} needs the base model")
        if self.statistic is None:
            fishers, scales = [], []
        elif fishers is None:
            raise ValueError(f"{name} needs one diagonal Fisher per expert")
        elif scales is None:
            scales = [self.scale(fisher) for fisher in fishers]
        formula = self.formula(coefficients, scales)
        origin = experts[0] if base is None else base
        merged = empty_like(experts[0]) if out is None else out
        for key, target in merged.items():
            _stream(formula, key, target, [origin], experts, fishers)
        return merged


def divide_(numerator: Tensor, denominator: Tensor, otherwise: Tensor | float) -> None:
    """Divides in place, where that is possible.

    Args:
        numerator: Becomes the quotient.
        denominator: Numbers ≥ 0 of its shape.
        otherwise: The result where the denominator is 0.
    """
    if denominator.min() > 0:  # much faster than a mask, which is hardly ever needed
        numerator.div_(denominator)
        return
    quotient = numerator / denominator
    numerator.copy_(torch.where(denominator > 0, quotient, otherwise))


def _stream(formula: Formula, name: str, target: Tensor, *inputs: Sources) -> None:
    """Fills one tensor, piece by piece, in its own precision or in float32 if that is finer."""
    if not target.numel():
        return
    on_cpu = target.device.type == "cpu"
    size = PIECE * torch.get_num_threads() if on_cpu else _ON_DEVICE
    wide = torch.promote_types(target.dtype, torch.float32)
    like = torch.empty(min(size, target.numel()), dtype=wide, device=target.device)
    rows = (_rows(sources, name, size, like) for sources in inputs)
    for piece, (origin,), experts, fishers in zip(_split(target, size), *rows, strict=False):
        result = piece if piece.dtype == wide else like[: len(piece)]
        formula(result, origin, experts, fishers)
        if result is not piece:
            piece.copy_(result)


def _rows(sources: Sources, name: str, size: int, like: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The pieces of one tensor, of all sources side by side; without end if there are none."""
    if not sources:
        return repeat(())
    return zip(*(_pieces(source, name, size, like) for source in sources), strict=True)


def _pieces(source: Mapping[str, Tensor], name: str, size: int, like: Tensor) -> Iterator[Tensor]:
    if isinstance(source, Between):
        ends = (_pieces(end, name, size, like) for end in (source.low, source.high))
        for low, high in zip(*ends, strict=True):
            yield source.of(low, high)
        return
    for piece in _split(source[name], size):
        yield piece.to(like)


def _split(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = tensor.reshape(-1).split(size)  # type: ignore[no-untyped-call]
    return pieces
