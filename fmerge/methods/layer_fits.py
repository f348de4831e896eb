"""Closed fits of a merged layer to its experts, from moments of what enters the layer.

Letters: m expert, i input, o output of a layer; x what the merged model's layer reads on an
expert's task, x̃ what the expert is asked about there, E the mean over positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmerge.methods.inputs import precision
from fmerge.methods.regmean import RIDGE


@dataclass(frozen=True)
class Moments:
    """Sums over the positions of one expert's examples.

    Attributes:
        second: Σ x xᵀ (i, i).
        cross: Σ x x̃ᵀ (i, i); ``second`` itself where x̃ = x.
        count: How many positions there are.
    """

    second: Tensor
    cross: Tensor
    count: float


@dataclass(frozen=True)
class Means:
    """Means over the positions of one expert's examples.

    Attributes:
        merged: E[x] (i,).
        target: E[x̃] (i,).
    """

    merged: Tensor
    target: Tensor


class LinearFit:
    r"""Fits the weight W (o, i) of a linear layer to those of its experts.

    .. math::
        W = \Big[\Big(\sum_m s_m C_m + r I\Big)^{-1}
            \Big(\sum_m s_m D_m W_m^\top + r A^\top\Big)\Big]^\top

    with Cₘ = ``second`` and Dₘ = ``cross``. With r = 0 a ridge of 1e-6 of the mean diagonal entry
    of Σₘ sₘCₘ pulls W towards the start, which decides in directions without inputs.

    Only the sums are held, whatever the number of experts. They are float64, but on a device that
    has none.

    Args:
        start: The merged layer's weight before the fit (o, i).
        off_diagonal: Factor on the off-diagonal entries of every Cₘ and Dₘ.
    """

    def __init__(self, start: Tensor, off_diagonal: float = 1.0) -> None:
        self.start = _widest(start)
        self.off_diagonal = off_diagonal
        self.total = self.start.new_zeros(start.shape[1], start.shape[1])
        # of the differences to the start, in which rounding matters least
        self.moment = torch.zeros_like(self.start)

    def add(self, weight: Tensor, moments: Moments, scale: float) -> None:
        """Adds an expert.

        Args:
            weight: Wₘ (o, i).
            moments: Of the expert's task.
            scale: sₘ.
        """
        second = self._shrunk(moments.second, scale)
        same = moments.cross is moments.second
        cross = second if same else self._shrunk(moments.cross, scale)
        self.total.add_(second)
        own = weight.to(self.start)
        if same:  # exactly zero where the expert has the start's weight
            self.moment.addmm_(own - self.start, second)
        else:
            self.moment.addmm_(own, cross.T).addmm_(self.start, second, alpha=-1)

    def solve(self, ridge: float = 0.0, anchor: Tensor | None = None) -> Tensor:
        """Solves for W.

        Args:
            ridge: r.
            anchor: A (o, i), the start's weight if left out.

        Returns:
            W (o, i), in the sums' precision.
        """
        size = float(self.total.diagonal().mean()) if len(self.total) else 0.0
        moment = self.moment
        if ridge > 0 and anchor is not None:
            moment = torch.add(moment, anchor.to(self.start) - self.start, alpha=ridge)
        # without any input, every ridge gives the start
        least = RIDGE * size if size > 0 else 1.0
        total = self.total.clone()
        total.diagonal().add_(ridge if ridge > 0 else least)
        solved: Tensor = torch.linalg.solve(total, moment, left=False)
        return self.start + solved

    def _shrunk(self, matrix: Tensor, scale: float) -> Tensor:
        shrunk = matrix.to(self.start, copy=True)
        diagonal = shrunk.diagonal().clone()
        shrunk.mul_(scale * self.off_diagonal).diagonal().copy_(scale * diagonal)
        return shrunk


def fit_bias(
    weight: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], means: Sequence[Means]
) -> Tensor:
    """Fits the bias of a linear layer: b = meanₘ E[Wₘx̃ + bₘ − Wx].

    Args:
        weight: W (o, i), the fitted weight.
        weights: Wₘ (o, i).
        biases: bₘ (o,).
        means: Of each expert's task.

    Returns:
        b (o,), in the precision of W.
    """
    total = torch.zeros_like(weight[:, 0])
    for own, bias, mean in zip(weights, biases, means, strict=True):
        total += own.to(weight) @ mean.target.to(weight) + bias.to(weight)
        total -= weight @ mean.merged.to(weight)
    return total / len(weights)


@dataclass(frozen=True)
class Affine:
    """Gain and shift of a normalisation, y = γz + β, of each of its channels.

    Attributes:
        gain: γ (i,).
        shift: β (i,); None where there is none.
    """

    gain: Tensor
    shift: Tensor | None = None


@dataclass(frozen=True)
class ChannelMoments:
    """Means of normalised inputs over the positions of one expert's examples.

    Attributes:
        first: E[z] (i,).
        second: E[z²] (i,).
    """

    first: Tensor
    second: Tensor


def fit_affine(
    start: Affine,
    experts: Sequence[Affine],
    moments: Sequence[ChannelMoments],
    ridge: float = 0.0,
    anchor: Affine | None = None,
) -> Affine:
    """Fits gain and shift of a normalisation to those of its experts, channel by channel.

    Minimises Σₘ E[(γz + β − γₘz − βₘ)²] + r(γ − A_γ)² + r(β − A_β)², where z is what the merged
    model's layer has normalised. With r = 0 a ridge as in ``LinearFit`` pulls towards the start.

    Args:
        start: The merged layer's, before the fit.
        experts: The experts'.
        moments: Of each expert's task.
        ridge: r.
        anchor: A; the start if left out.

    Returns:
        γ and β, in float64, but on a device that has none; β is None if the start's is.
    """
    gain = _widest(start.gain)
    origin = torch.stack([
        gain,
        torch.zeros_like(gain) if start.shift is None else start.shift.to(gain),
    ])
    normal, right = gain.new_zeros(len(gain), 2, 2), gain.new_zeros(len(gain), 2)
    for expert, one in zip(experts, moments, strict=True):
        first, second = one.first.to(gain), one.second.to(gain)
        ones = torch.ones_like(first)
        own = torch.stack([second, first, first, ones], dim=1).view(-1, 2, 2)
        shift = torch.zeros_like(gain) if expert.shift is None else expert.shift.to(gain)
        difference = torch.stack([expert.gain.to(gain), shift]) - origin
        normal += own
        right += (own @ difference.T[..., None])[..., 0]
    if ridge > 0 and anchor is not None:
        shift = origin[1] if anchor.shift is None else anchor.shift.to(gain)
        right += ridge * (torch.stack([anchor.gain.to(gain), shift]) - origin).T
    least = RIDGE * normal.diagonal(dim1=1, dim2=2).mean(dim=1, keepdim=True)
    normal.diagonal(dim1=1, dim2=2).add_(ridge if ridge > 0 else least.clamp_min(RIDGE))
    if start.shift is None:
        return Affine(gain + right[:, 0] / normal[:, 0, 0])
    found = origin.T + torch.linalg.solve(normal, right)
    return Affine(found[:, 0], found[:, 1])


def _widest(tensor: Tensor) -> Tensor:
    """A copy in float64, or in float32 on a device without it."""
    dtype = precision(torch.float64, tensor.device)
    return tensor.to(dtype, copy=True)
