"""Formulas entry by entry, computed in chunks that stay in the processor's cache."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from fmerge.methods.base import MergeMethod
from fmerge.params import Between, Params, empty_like

CHUNK = 1 << 17
"""Entries a thread takes at a time: what a formula holds of them fits into its cache."""

_SMALL = 1 << 13
"""Tensors up to this size are joined, up to 64 at a time: a call costs more than they do."""

_ON_DEVICE = 1 << 24  # elsewhere there is no such cache, and few launches are better

Sources = Sequence[Mapping[str, Tensor]]


class Chunk(NamedTuple):
    """A few entries of every model, flat and in float32 at least, for a formula to merge.

    Attributes:
        merged: To be filled with the result; the models are only read.
        origin: θ₀, or θ₁ where there is no base.
        experts: θₘ.
        fishers: Fₘ, each as it is only until the next is taken.
        scratch: Three more such tensors of any values, to work with: what is made anew costs
            more than a sum.
    """

    merged: Tensor
    origin: Tensor
    experts: Sequence[Tensor]
    fishers: Iterable[Tensor]
    scratch: Sequence[Tensor]


Formula = Callable[[Chunk], None]


class Elementwise(MergeMethod):
    """A method whose every entry depends on that entry of its inputs and on a few numbers.

    Its formula runs over chunks of the tensors, so that each input is read from memory once and
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
        """Prepares what computes a chunk.

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
        batches = [(names, _flat(merged, names)) for names in _batches(merged)]
        largest = max((len(target) for _, target in batches), default=0)
        room = cache(partial(_room, largest))
        for names, target in batches:
            wide = torch.promote_types(target.dtype, torch.float32)
            _stream(formula, names, target, origin, experts, fishers, room(wide, target.device))
            if len(names) > 1:
                _scatter(target, [merged[name] for name in names])
        return merged


def _room(largest: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """What every chunk has to work with: a result, an interpolated Fisher, and the last three."""
    size = CHUNK * torch.get_num_threads() if device.type == "cpu" else _ON_DEVICE
    return [torch.empty(min(size, largest), dtype=dtype, device=device) for _ in range(5)]


def _batches(params: Params) -> Iterator[list[str]]:
    """The tensors that are computed as one: each alone, but for the small ones of a kind."""
    small: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in params.items():
        if tensor.numel() > _SMALL:
            yield [name]
        elif tensor.numel():
            small.setdefault((tensor.dtype, tensor.device), []).append(name)
    for names in small.values():
        yield from (names[i : i + 64] for i in range(0, len(names), 64))


def _stream(
    formula: Formula,
    names: Sequence[str],
    target: Tensor,
    origin: Mapping[str, Tensor],
    experts: Sources,
    fishers: Sources,
    room: Sequence[Tensor],
) -> None:
    """Fills one tensor, chunk by chunk, in its own precision or in float32 if that is finer."""
    size = len(room[0])
    models = [_split(_flat(one, names), size) for one in (origin, *experts)]
    measures = [_ends(one, names, size) for one in fishers]
    for i, chunk in enumerate(_split(target, size)):
        result, between, *scratch = (one[: len(chunk)] for one in room)
        if chunk.dtype == result.dtype:
            result = chunk
        first, *rest = (model[i].to(result) for model in models)
        measured = (one(i, between) for one in measures)
        formula(Chunk(result, first, rest, measured, scratch))
        if result is not chunk:
            chunk.copy_(result)


def _ends(
    source: Mapping[str, Tensor], names: Sequence[str], size: int
) -> Callable[[int, Tensor], Tensor]:
    """A tensor's chunks by number; one that is made is written to the second argument."""
    if not isinstance(source, Between):
        chunks = _split(_flat(source, names), size)
        return lambda i, out: chunks[i].to(out)
    low, high = (_split(_flat(end, names), size) for end in (source.low, source.high))
    return lambda i, out: source.of(low[i].to(out), high[i].to(out), out)


def _flat(source: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    if len(names) == 1:
        return source[names[0]].reshape(-1)
    return torch.cat([source[name].reshape(-1) for name in names])


def _scatter(joined: Tensor, tensors: Sequence[Tensor]) -> None:
    sizes = [tensor.numel() for tensor in tensors]
    for part, tensor in zip(joined.split(sizes), tensors, strict=True):  # type: ignore[no-untyped-call]
        tensor.copy_(part.view_as(tensor))


def _split(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    chunks: tuple[Tensor, ...] = tensor.split(size)  # type: ignore[no-untyped-call]
    return chunks
