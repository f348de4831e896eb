"""Regression mean: linear layers whose outputs stay close to each expert's on its own inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmerge.errors import check_within
from fmerge.methods.base import TensorFormula, check_positive_sum
from fmerge.methods.inputs import MergeInputs, wide
from fmerge.methods.tensorwise import Tensorwise

RIDGE = 1e-6
"""Ridge, as a share of the mean diagonal entry of Σₘ λₘG̃ₘ: just above a Gram's float32 rounding."""


@dataclass(frozen=True)
class Gram:
    """Gram matrix of the inputs of a linear layer.

    Attributes:
        matrix: G = Σ x xᵀ (in, in) over the positions that an expert sees on its own task.
        inputs_first: Whether the layer's weight is (in, out), as of GPT-2's Conv1D, not (out, in).
    """

    matrix: Tensor
    inputs_first: bool = False


Grams = Mapping[str, Gram]
"""Names of linear layers' weights to the Grams of the layers' inputs."""


class RegMean(Tensorwise):
    r"""Regression mean (Jin et al., ICLR 2023, equation 1 and section 3.2).

    .. math::
        W = \Big(\sum_m \lambda_m W_m \tilde G_m\Big) \Big(\sum_m \lambda_m \tilde G_m\Big)^{-1}

    for a weight W (out, in) of a linear layer, or a kernel as the matrix that multiplies its
    convolution's patches, where Gₘ = XₘᵀXₘ (in, in) is the Gram matrix of the
    layer's inputs Xₘ, and G̃ₘ is Gₘ with its off-diagonal entries shrunk. Without shrinking it
    minimises Σₘ λₘ‖XₘWᵀ − XₘWₘᵀ‖². Biases, norms, embeddings, and weights that lack the Gram of
    an expert are averaged with weights λₘ.

    A ridge of 1e-6 of the mean diagonal entry of Σₘ λₘG̃ₘ pulls W towards that same average. It
    decides in directions that no expert's inputs have.

    Args:
        off_diagonal: Factor on the off-diagonal entries of every Gₘ, the paper's α: 1 is plain
            regression; 0 weighs every input of a layer on its own.
    """

    statistic = "gram"
    scale_invariant = True

    def __init__(self, off_diagonal: float = 0.9) -> None:
        check_within("off_diagonal", off_diagonal, "[0, 1]")
        self.off_diagonal = off_diagonal

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares the regression mean, computed in float64.

        Args:
            inputs: θₘ, λₘ ≥ 0, of which only the ratios matter, and Gₘ by name of a linear
                layer's weight.

        Returns:
            The formula. The coefficients must not sum to zero, and a Gram must be of the size of
            its weight's inputs.
        """
        check_positive_sum(inputs.coefficients)
        shares = [coefficient / sum(inputs.coefficients) for coefficient in inputs.coefficients]

        def merged(name: str) -> Tensor:
            weights = [expert[name] for expert in inputs.weights]
            if all(name in grams for grams in inputs.statistics):
                return self._regression(weights, shares, [one[name] for one in inputs.statistics])
            return _mean(weights, shares)

        return merged

    def _regression(
        self, weights: Sequence[Tensor], shares: Sequence[float], grams: Sequence[Gram]
    ) -> Tensor:
        """W̄ + (Σₘ λₘ(Wₘ − W̄)G̃ₘ) (Σₘ λₘG̃ₘ + ρI)⁻¹: ρ in both sums, as Σₘ λₘ(Wₘ − W̄) = 0."""
        first = grams[0].inputs_first
        mean = _mean([weight.double() for weight in weights], shares)
        mean = _matrix(mean, first)
        moment = torch.zeros_like(mean)
        total = mean.new_zeros(mean.shape[1], mean.shape[1])
        for weight, share, gram in zip(weights, shares, grams, strict=True):
            if gram.matrix.shape != total.shape:
                raise ValueError(f"RegMean needs Grams {tuple(total.shape)} for these weights")
            # in place: a layer may have thousands of inputs, and a search thousands of solves
            shrunk = gram.matrix.to(mean, copy=True)
            diagonal = shrunk.diagonal().clone()
            shrunk.mul_(share * self.off_diagonal).diagonal().copy_(share * diagonal)
            total.add_(shrunk)
            moment.addmm_(_matrix(weight.double(), first) - mean, shrunk)
        size = float(total.diagonal().mean())
        # without any input, every ridge gives the average
        total.diagonal().add_(RIDGE * size if size > 0 else 1.0)
        value: Tensor = mean + torch.linalg.solve(total, moment, left=False)
        return (value.T if first else value).reshape(weights[0].shape)


def _matrix(weight: Tensor, inputs_first: bool) -> Tensor:
    """Views a weight as (out, in), a convolution's kernel as (out, channels · height · width)."""
    return weight.T if inputs_first else weight.flatten(1)


def _mean(weights: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    mean = torch.zeros_like(wide(weights[0]))
    for weight, share in zip(weights, shares, strict=True):
        mean.add_(weight, alpha=share)
    return mean
