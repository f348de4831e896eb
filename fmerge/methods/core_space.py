"""Core Space: merges of low-rank changes in the small space that all of them span."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.methods.averages import Average, Isotropic
from fmerge.methods.base import MergeMethod
from fmerge.methods.composition import OnTaskVectors
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.low_rank import Thin, noise_of, thin_svd
from fmerge.methods.spectral import TSVM
from fmerge.params import Params


class Space(NamedTuple):
    """The space of one matrix.

    Attributes:
        left: U, (o, k), orthonormal: the left singular vectors of [ΔW₁ … ΔW_M].
        right: V, (i, k'), orthonormal: the right ones of the ΔWₘ on top of each other.
    """

    left: Tensor
    right: Tensor


@final
class CoreSpace(OnTaskVectors):
    """Any method on task vectors, in Core Space (Panariello et al. 2025, 2509.17786, section 4).

    The task matrices ΔWₘ of LoRA experts are of low rank, so that bases U and V of all of them
    together are thin. The method merges the small matrices UᵀΔWₘV to M, and θ = θ₀ + U M Vᵀ:
    nothing is lost, as ΔWₘ = U(UᵀΔWₘV)Vᵀ. A linear method gives the same merge as outside, and a
    method on singular vectors decomposes small matrices instead of large ones.

    U and V are the singular vectors of the stacked ΔWₘ. The paper has those of the stacked Bₘ and
    Aₘ, which span the same spaces but depend on how ΔWₘ is factored; methods that go entry by
    entry, such as ``TIES``, depend on the choice. Tensors that no expert changes stay θ₀ and take
    no part. Those that are no matrices, or not of low rank, are merged as they are.

    Args:
        method: The method; ``TSVM`` when left out.

    Raises:
        UserError: If it merges weights instead of task vectors, or by statistics.
    """

    def __init__(self, method: MergeMethod | None = None) -> None:
        super().__init__(TSVM() if method is None else method)
        kind = type(self.method).__name__
        if self.method.statistic is not None:
            raise UserError(
                f"CoreSpace: method is {kind}, whose statistics belong to single weights; give a "
                "method without Fishers and Grams, such as TSVM"
            )
        if not self.method.needs_base and not isinstance(self.method, Average | Isotropic):
            raise UserError(
                f"CoreSpace: method is {kind}, which merges weights, not task vectors; give one "
                "that needs the base, such as TSVM"
            )
        self.usual_coefficient = self.method.usual_coefficient
        self.holds_average = self.method.holds_average
        self.writes_into_out = False

    def compute(self, inputs: MergeInputs, out: Params | None = None) -> Params:
        """Merges in Core Space.

        Args:
            inputs: The inputs, checked.
            out: Not written to.

        Returns:
            New tensors of the experts' layout and dtype.
        """
        spaces, small = self._small(inputs)
        merged = self.method.compute(small) if small.experts[0] else {}
        return {
            name: self._whole(inputs.origin[name], merged.get(name), spaces.get(name)).to(tensor)
            for name, tensor in inputs.experts[0].items()
        }

    def facts(self, inputs: MergeInputs) -> list[str]:
        """States how large the spaces are; see the base class."""
        spaces, small = self._small(inputs)
        largest = max(
            (max(one.left.shape[1], one.right.shape[1]) for one in spaces.values()), default=0
        )
        own = (
            f"Core Space: {len(spaces)} of {len(small.experts[0])} changed tensors are merged in "
            f"spaces of at most {largest} dimensions"
        )
        return [own, *(self.method.facts(small) if small.experts[0] else [])]

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Computes ∂L/∂λₘ from Uᵀ(∂L/∂W)V; see the base class.

        Args:
            inputs: The inputs of the merge, checked.
            gradient: ∂L/∂θ by tensor.

        Returns:
            One number for each expert (m,), in float64.
        """
        spaces, small = self._small(inputs)
        inside = {
            name: spaces[name].left.T @ one.double() @ spaces[name].right if name in spaces else one
            for name, one in gradient.items()
            if name in small.experts[0]
        }
        return self.method.pull_back(small, inside)

    def _small(self, inputs: MergeInputs) -> tuple[Mapping[str, Space], MergeInputs]:
        """The spaces of the matrices that have one, and what is merged of all that changes."""
        spaces: dict[str, Space] = {}
        base: Params = {}
        experts: list[Params] = [{} for _ in inputs.experts]
        for name in inputs.experts[0]:
            vectors = [vector.double() for vector in inputs.task_vectors(name)]
            if not any(vector.any() for vector in vectors):
                continue
            space = _space(inputs.origin[name], vectors)
            if space is None:
                base[name] = inputs.origin[name]
                for own, weights in zip(experts, inputs.weights, strict=True):
                    own[name] = weights[name]
                continue
            spaces[name] = space
            for own, vector in zip(experts, vectors, strict=True):
                own[name] = space.left.T @ vector @ space.right
            base[name] = torch.zeros_like(experts[0][name])
        # the places of the large tensors, as small ones do not tell how weights are stored
        small = replace(inputs, base=base, experts=experts, given_places=inputs.places, maps=())
        return spaces, small

    @staticmethod
    def _whole(origin: Tensor, merged: Tensor | None, space: Space | None) -> Tensor:
        if merged is None:  # nobody changed it
            return origin.clone()
        if space is None:
            return merged
        return origin.double() + space.left @ merged @ space.right.T


def _space(origin: Tensor, vectors: Sequence[Tensor]) -> Space | None:
    """The space of a matrix's changes; None where it would not be smaller than the matrix."""
    if origin.dim() != 2:
        return None
    parts: list[Thin] = []
    for vector in vectors:
        # of narrower dtypes the rounding is larger, so that their changes are not of low rank
        part = thin_svd(vector, noise_of(origin.double() + vector))
        if part is None:
            return None
        parts.append(part)
    # scaled by their values, as the stacked ΔWₘ have them
    left = torch.cat([part.left * part.values for part in parts], dim=1)
    right = torch.cat([part.right * part.values for part in parts], dim=1)
    if not 0 < left.shape[1] < min(origin.shape):
        return None
    return Space(_range(left), _range(right))


def _range(columns: Tensor) -> Tensor:
    """The left singular vectors (n, k) of columns (n, c) that are not rounding."""
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    limit = torch.finfo(columns.dtype).eps * max(columns.shape) * values[0]
    kept: Tensor = left[:, : int((values > limit).sum())]
    return kept
