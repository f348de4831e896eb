"""What a merge is computed from: weights, task vectors, coefficients, statistics, places."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fmerge.methods.roles import Place, places_of

PART = 1 << 17
"""Entries of a part of a tensor that is merged apart from the rest."""

VectorMap = Callable[[int, str, Tensor], Tensor]
"""From m, a tensor's name and that tensor of τₘ to the transformed one, of the same shape."""


def precision(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Chooses the precision that formulas are computed in.

    Half-precision weights are computed in float64. They have few values, so that sums and votes
    often end exactly between two of them, where the rounding of a coefficient to float32 decides.

    Args:
        dtype: The weights' floating dtype.
        device: Where they are.

    Returns:
        float32 of float32, else float64; float32 on a device that has no float64.
    """
    if dtype == torch.float32 or device.type == "mps":
        return torch.float32
    return torch.promote_types(dtype, torch.float64)


def wide(tensor: Tensor) -> Tensor:
    """Raises a tensor to the precision that formulas are computed in.

    Args:
        tensor: Weights, of any floating dtype.

    Returns:
        The tensor itself where it is float32 or float64, else a float64 copy.
    """
    return tensor.to(precision(tensor.dtype, tensor.device))


@dataclass(frozen=True)
class MergeInputs:
    """The inputs of one merge. A formula only reads them, tensor by tensor.

    Attributes:
        base: θ₀; None where the method does not need it.
        experts: θₘ as they are given. The result has the layout, dtype and device of θ₁.
        coefficients: λₘ.
        statistics: What the method's ``statistic`` names, for each expert; empty where it is None.
        scales: ``statistic_scale`` of each statistic.
        given_places: The tensors' places, where the experts are only a part of their models.
        maps: The maps that the task vectors go through, in this order.
        entrywise: Whether each map turns an entry into one that depends on no other entry.
    """

    base: Mapping[str, Tensor] | None
    experts: Sequence[Mapping[str, Tensor]]
    coefficients: Sequence[float]
    statistics: Sequence[Mapping[str, Any]] = ()
    scales: Sequence[float] = ()
    given_places: Mapping[str, Place] | None = None
    maps: tuple[VectorMap, ...] = ()
    entrywise: bool = True

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """Role and depth of every tensor, by name."""
        return places_of(self.experts[0]) if self.given_places is None else self.given_places

    @property
    def origin(self) -> Mapping[str, Tensor]:
        """θ₀, or θ₁ where there is no base."""
        return self.experts[0] if self.base is None else self.base

    @property
    def weights(self) -> Sequence[Mapping[str, Tensor]]:
        """θₘ for formulas on weights; θ₀ + τ̂ₘ where the task vectors are transformed.

        Transformed weights are as ``wide`` makes them, and each tensor is made when it is read.
        """
        if not self.maps:
            return self.experts
        return [_Transformed(self, m) for m in range(len(self.experts))]

    def task_vector(self, m: int, name: str) -> Tensor:
        """Computes one tensor of a task vector, for formulas on task vectors.

        Args:
            m: The expert's position, from 0.
            name: The tensor.

        Returns:
            τₘ = θₘ − θ₀ in the precision of ``wide``, after all maps.
        """
        # a difference of near bfloat16 weights would lose most of its digits
        vector = wide(self.experts[m][name]) - self.origin[name]
        for transform in self.maps:
            vector = transform(m, name, vector)
        return vector

    def task_vectors(self, name: str) -> list[Tensor]:
        """Computes one tensor of every task vector.

        Args:
            name: The tensor.

        Returns:
            τₘ for each expert m; see ``task_vector``.
        """
        return [self.task_vector(m, name) for m in range(len(self.experts))]

    def oriented(self, name: str, matrix: Tensor) -> Tensor:
        """Turns a linear layer's weight, or what has its shape, into (out, in), or back.

        Args:
            name: The weight.
            matrix: Two-dimensional.

        Returns:
            A view: transposed where the layer's weight is (in, out).
        """
        return matrix.T if self.places[name].inputs_first else matrix

    def transformed(self, transform: VectorMap, entrywise: bool = False) -> "MergeInputs":
        """Adds a map that the task vectors go through.

        Args:
            transform: The map, applied after the present ones.
            entrywise: Whether it turns an entry into one that depends on no other entry.

        Returns:
            The new inputs.
        """
        return replace(self, maps=(*self.maps, transform), entrywise=self.entrywise and entrywise)

    def only(self, name: str) -> "MergeInputs":
        """Selects one tensor, which is read here where the inputs are files.

        Args:
            name: The tensor; ``given_places`` must tell its place.

        Returns:
            Inputs of that tensor alone.
        """
        return self._with(name, None)

    def parts(self, name: str) -> Iterator["MergeInputs"]:
        """Cuts one tensor into parts, where no map looks at more than an entry.

        Args:
            name: The tensor.

        Yields:
            Inputs of that tensor alone, flat and of at most ``PART`` entries, in order; of the
            whole tensor where a map looks at all of it.
        """
        if not self.entrywise:
            yield self.only(name)
            return
        for start in range(0, self.origin[name].numel(), PART):
            yield self._with(name, slice(start, start + PART))

    def _with(self, name: str, part: slice | None) -> "MergeInputs":
        return replace(
            self,
            base=None if self.base is None else _Part(self.base, name, part),
            experts=[_Part(one, name, part) for one in self.experts],
            statistics=[_Part(one, name, part) for one in self.statistics],
        )


@dataclass(frozen=True)
class _Part(Mapping[str, Any]):
    """One tensor, or a part of it: flat, and read when it is asked for."""

    source: Mapping[str, Any]
    name: str
    part: slice | None

    def __getitem__(self, name: str) -> Any:
        if name != self.name:
            raise KeyError(name)
        whole = self.source[name]
        return whole if self.part is None else whole.reshape(-1)[self.part]

    def __iter__(self) -> Iterator[str]:
        return iter([self.name])

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class _Transformed(Mapping[str, Tensor]):
    """θ₀ + τ̂ₘ, a tensor at a time, so that no transformed model is ever in memory."""

    inputs: MergeInputs
    m: int

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs.task_vector(self.m, name) + self.inputs.origin[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs.experts[self.m])

    def __len__(self) -> int:
        return len(self.inputs.experts[self.m])
