"""Elementwise formulas, computed in chunks that stay in the processor's cache."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from fmerge.methods.base import MergeMethod, TensorFormula
from fmerge.methods.inputs import MergeInputs, precision
from fmerge.params import Between, Params, empty_like

CHUNK = 1 << 17
"""Entries of a chunk for each CPU thread: all that a formula holds of them fits in its cache."""

_SMALL = 1 << 13
"""Tensors up to this size are joined, up to 64 at a time: a call costs more than their entries."""

_ON_DEVICE = 1 << 24  # a GPU has no such cache, and few launches are faster


class Chunk(NamedTuple):
    """Some entries of every model, flat and in one precision, for a formula to merge.

    Attributes:
        merged: To be filled with the result; the models are only read.
        origin: θ₀, or θ₁ where there is no base.
        experts: θₘ.
        fishers: Fₘ; each is valid until the next is taken.
        scratch: Three more such tensors of any values, to work in: allocating one costs more than
            a sum.
    """

    merged: Tensor
    origin: Tensor
    experts: Sequence[Tensor]
    fishers: Iterable[Tensor]
    scratch: Sequence[Tensor]


Formula = Callable[[Chunk], None]
ChunkReader = Callable[[int, Tensor], Tensor]
"""From a chunk's number and a scratch buffer of its size to the chunk, perhaps in that buffer."""


class Elementwise(MergeMethod):
    """A method whose every entry depends on that entry of its inputs and on a few numbers.

    Its formula runs over chunks of the tensors, so that each input is read from memory once and
    nothing of a model's size is allocated but the result. A tensor that is not contiguous is
    copied while it is merged.
    """

    writes_into_out = True
    streams = True
    entrywise = True

    @abstractmethod
    def formula(self, coefficients: Sequence[float], scales: Sequence[float]) -> Formula:
        """Prepares the computation of a chunk.

        Args:
            coefficients: λₘ.
            scales: ``statistic_scale`` of each Fₘ; empty where there are no Fishers.

        Returns:
            The formula; it must not depend on the order of its calls.
        """

    @torch.no_grad()
    def compute(self, inputs: MergeInputs, out: Params | None = None) -> Params:
        """Merges chunk by chunk.

        Args:
            inputs: The inputs, checked.
            out: Contiguous tensors of the experts' layout, dtypes and device to write to.

        Returns:
            ``out``, or new tensors where it is None.
        """
        formula = self.formula(inputs.coefficients, inputs.scales)
        sources = _Sources([inputs.origin, *inputs.weights], inputs.statistics)
        merged = empty_like(inputs.experts[0]) if out is None else out
        batches = [(names, _flat(merged, names)) for names in _batches(merged)]
        largest = max((len(target) for _, target in batches), default=0)
        # one set of buffers for each precision and device, for all tensors
        buffers = cache(partial(_buffers, largest))
        for names, target in batches:
            working = precision(target.dtype, target.device)
            sources.merge(formula, names, target, buffers(working, target.device))
            if len(names) > 1:
                _scatter(target, [merged[name] for name in names])
        return merged

    def by_tensor(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares a merge a tensor at a time.

        Args:
            inputs: See the base class.

        Returns:
            The formula.
        """
        return lambda name: self.compute(inputs.only(name))[name]


def _buffers(largest: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Scratch buffers of a chunk: a result, an interpolated Fisher, and the formula's three."""
    size = CHUNK * torch.get_num_threads() if device.type == "cpu" else _ON_DEVICE
    return [torch.empty(min(size, largest), dtype=dtype, device=device) for _ in range(5)]


def _batches(params: Params) -> Iterator[list[str]]:
    """Groups tensors to be merged as one: large ones alone, small ones of a dtype together."""
    small: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in params.items():
        if tensor.numel() > _SMALL:
            yield [name]
        elif tensor.numel():
            small.setdefault((tensor.dtype, tensor.device), []).append(name)
    for names in small.values():
        yield from (names[i : i + 64] for i in range(0, len(names), 64))


@dataclass(frozen=True)
class _Sources:
    """What the chunks are read from: θ₀ and the θₘ, and the Fₘ."""

    models: Sequence[Mapping[str, Tensor]]
    fishers: Sequence[Mapping[str, Tensor]]

    def merge(
        self, formula: Formula, names: Sequence[str], target: Tensor, buffers: Sequence[Tensor]
    ) -> None:
        """Fills one flat tensor, chunk by chunk, in the precision of the buffers."""
        size = len(buffers[0])
        models = [_split(_flat(one, names), size) for one in self.models]
        fishers = [_chunk_reader(one, names, size) for one in self.fishers]
        for i, chunk in enumerate(_split(target, size)):
            result, interpolated, *scratch = (one[: len(chunk)] for one in buffers)
            if chunk.dtype == result.dtype:
                result = chunk  # no rounding: the formula can write to the target itself
            origin, *experts = (model[i].to(result) for model in models)
            # lazily, since all interpolated Fishers share one buffer
            read = (reader(i, interpolated) for reader in fishers)
            formula(Chunk(result, origin, experts, read, scratch))
            if result is not chunk:
                chunk.copy_(result)


def _chunk_reader(source: Mapping[str, Tensor], names: Sequence[str], size: int) -> ChunkReader:
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
