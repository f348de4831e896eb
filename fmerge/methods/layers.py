"""Methods on the matrices of layers, seen as maps from inputs to outputs."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmerge.methods.inputs import MergeInputs
from fmerge.methods.task_vectors import ScaledChange


class Layer(NamedTuple):
    """One matrix of every task vector, o outputs × i inputs.

    Attributes:
        vectors: τₘ, each of shape (o, i), in the precision of ``wide``; only read.
        coefficients: λₘ.
        fishers: Fₘ, each of shape (o, i); empty where the method uses none.
        linear: Whether it is the weight of a linear layer, not of an embedding.
    """

    vectors: Sequence[Tensor]
    coefficients: Sequence[float]
    fishers: Sequence[Tensor]
    linear: bool


class LayerMethod(ScaledChange):
    """Merges matrices as maps from inputs to outputs, and other tensors by averaging.

    θ = θ₀ + s · Δ. For a tensor of two dimensions Δ is the method's; for any other
    Δ = Σₘ λₘτₘ / M. A weight that is stored as (i, o), such as GPT-2's, is turned before and
    after.

    Args:
        scale: Factor s on Δ.
    """

    @abstractmethod
    def combine(self, layer: Layer) -> Tensor:
        """Merges one matrix.

        Args:
            layer: The matrix; it has entries.

        Returns:
            Δ, shape (o, i).
        """

    def change_of(self, inputs: MergeInputs, name: str) -> Tensor:
        """Computes Δ of one tensor; see the base class.

        Args:
            inputs: θ₀, θₘ, λₘ, and Fₘ where the method uses them.
            name: The tensor.

        Returns:
            Δ, of that tensor's shape.
        """
        layer = layer_of(inputs, name)
        if layer is None:
            return mean(scaled(inputs.task_vectors(name), inputs.coefficients))
        return inputs.oriented(name, self.combine(layer))


def layer_of(inputs: MergeInputs, name: str) -> Layer | None:
    """Reads one matrix of every task vector.

    Args:
        inputs: The inputs of a merge.
        name: The tensor.

    Returns:
        The matrix; None where the tensor is no matrix, or has no entries.
    """
    first = inputs.experts[0][name]
    if first.dim() != 2 or not first.numel():
        return None
    vectors = [inputs.oriented(name, vector) for vector in inputs.task_vectors(name)]
    fishers = [inputs.oriented(name, fisher[name]) for fisher in inputs.statistics]
    linear = inputs.places[name].role == "linear"
    return Layer(vectors, inputs.coefficients, fishers, linear)


def scaled(vectors: Sequence[Tensor], coefficients: Sequence[float]) -> list[Tensor]:
    """Multiplies each task vector by its coefficient.

    Args:
        vectors: τₘ, of one shape.
        coefficients: λₘ.

    Returns:
        λₘτₘ.
    """
    return [c * vector for c, vector in zip(coefficients, vectors, strict=True)]


def mean(vectors: Sequence[Tensor]) -> Tensor:
    """Averages tensors.

    Args:
        vectors: M tensors of one shape.

    Returns:
        Their sum over M.
    """
    return torch.stack(list(vectors)).mean(dim=0)
