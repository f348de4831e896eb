"""Regression mean: linear layers merged so that their outputs on the experts' inputs stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fmerge.errors import check_within
from fmerge.methods.base import MergeMethod, Statistic, check_positive_sum, wide
from fmerge.params import Params

RIDGE = 1e-6
"""Of the mean diagonal entry of Σₘ λₘG̃ₘ: above float32's rounding of a Gram, below what matters."""


@dataclass(frozen=True)
class Gram:
    """Gram matrix of what enters a linear layer.

    Attributes:
        matrix: G = Σ x xᵀ (in, in) over the positions that an expert sees on its own task.
        inputs_first: Whether the layer's weight is (in, out), as of GPT-2's Conv1D, not (out, in).
    """

    matrix: Tensor
    inputs_first: bool = False


Grams = Mapping[str, Gram]
"""Names of linear layers' weights to what enters the layers."""


class RegMean(MergeMethod):
    r"""Regression mean (Jin et al., ICLR 2023, equation 1 and section 3.2).

    .. math::
        W = \Big(\sum_m \lambda_m W_m \tilde G_m\Big) \Big(\sum_m \lambda_m \tilde G_m\Big)^{-1}

    for a weight W (out, in) of a linear layer, where Gₘ = XₘᵀXₘ (in, in) is of the layer's inputs
    Xₘ, and G̃ₘ is Gₘ with its off-diagonal entries shrunk. Without shrinking it minimises
    Σₘ λₘ‖XₘWᵀ − XₘWₘᵀ‖². All else is averaged with weights λₘ: biases, norms, embeddings, and
    weights that lack the Gram of an expert.

    A ridge of 1e-6 of the mean diagonal entry of Σₘ λₘG̃ₘ draws W to that same average: it decides
    in directions that no expert's inputs have.

    Args:
        off_diagonal: What the off-diagonal entries of every Gₘ are multiplied by, the paper's α:
            1 is plain regression, 0 weighs each input by itself.
    """

    statistic: ClassVar[Statistic | None] = "gram"
    scale_invariant = True

    def __init__(self, off_diagonal: float = 0.9) -> None:
        check_within("off_diagonal", off_diagonal, "[0, 1]")
        self.off_diagonal = off_diagonal

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        grams: Sequence[Grams] | None = None,
    ) -> Params:
        """Computes the regression mean, weight by weight, in float64.

        Args:
            base: Not used.
            experts: θₘ, of one layout.
            coefficients: λₘ ≥ 0; only their ratios matter.
            grams: Gₘ by name of a linear layer's weight.

        Returns:
            The merged tensors.

        Raises:
            ValueError: If there are no Grams, the coefficients sum to zero, or a Gram is of
                another size than its weight's inputs.
        """
        if grams is None:
            raise ValueError("RegMean needs the Gram matrices of each expert")
        check_positive_sum(coefficients)
        shares = [coefficient / sum(coefficients) for coefficient in coefficients]
        merged: Params = {}
        for name, reference in experts[0].items():
            weights = [expert[name] for expert in experts]
            if all(name in gram for gram in grams):
                value = self._regression(weights, shares, [gram[name] for gram in grams])
            else:
                value = _mean(weights, shares)
            merged[name] = value.to(reference)
        return merged

    def _regression(
        self, weights: Sequence[Tensor], shares: Sequence[float], grams: Sequence[Gram]
    ) -> Tensor:
        """W̄ + (Σₘ λₘ(Wₘ − W̄)G̃ₘ) (Σₘ λₘG̃ₘ + ρI)⁻¹: ρ in both sums, as Σₘ λₘ(Wₘ − W̄) = 0."""
        first = grams[0].inputs_first
        mean = _mean([weight.double() for weight in weights], shares)
        mean = mean.T if first else mean
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
            own = weight.double()
            moment.addmm_((own.T if first else own) - mean, shrunk)
        size = float(total.diagonal().mean())
        # no input at all: any ridge leaves the average
        total.diagonal().add_(RIDGE * size if size > 0 else 1.0)
        value: Tensor = mean + torch.linalg.solve(total, moment, left=False)
        return value.T if first else value


def _mean(weights: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    mean = torch.zeros_like(wide(weights[0]))
    for weight, share in zip(weights, shares, strict=True):
        mean.add_(weight, alpha=share)
    return mean
