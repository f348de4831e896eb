"""Sums over the rows that enter the layers of one level, which a calibration fits them by."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fmerge.methods.layer_fits import ChannelMoments, Means, Moments
from fmerge.modules.fitted_layers import normalised

Rows = dict[str, list[Tensor | None]]
"""A layer's place to what it read in each of its calls, where the positions are known."""

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor over the processes."""


class InputSums:
    """Σ x xᵀ, Σ x xₜᵀ, Σ x and Σ xₜ of linear layers or of the patches of a convolution.

    Args:
        paths: The layers, which share a weight.
        inputs: How many inputs they have.
        share: a in x̃ = a xₜ + (1 − a) x; with 0 no xₜ is needed.
        like: A tensor of the sums' dtype and device.
    """

    def __init__(self, paths: Sequence[str], inputs: int, share: float, like: Tensor) -> None:
        self.paths = paths
        self.share = share
        self.second = like.new_zeros(inputs, inputs)
        self.cross = like.new_zeros(inputs, inputs) if share else self.second
        self.first = like.new_zeros(len(paths), inputs)
        self.target = torch.zeros_like(self.first) if share else self.first
        self.counts = like.new_zeros(len(paths))
        self.unknown = like.new_zeros(1)

    def add(self, rows: Rows, targets: Rows) -> None:
        """Adds a batch.

        Args:
            rows: x by layer.
            targets: xₜ by layer; empty with a share of 0.
        """
        for i, path in enumerate(self.paths):
            others = targets[path] if self.share else rows[path]
            self.unknown += len(rows[path]) != len(others)
            for x, other in zip(rows[path], others, strict=False):
                if x is None or other is None or x.shape != other.shape:
                    self.unknown += 1
                    continue
                one = x.to(self.second)
                self.second.addmm_(one.T, one)
                self.first[i] += one.sum(0)
                self.counts[i] += len(one)
                if self.share:
                    wide = other.to(self.second)
                    self.cross.addmm_(one.T, wide)
                    self.target[i] += wide.sum(0)

    def reduced(self, reduce: Reduce) -> tuple[Moments, dict[str, Means]] | None:
        """Adds the sums over the processes.

        Args:
            reduce: How.

        Returns:
            The moments over all layers, and each layer's means; None where the positions of some
            inputs are not known, or a layer had none.
        """
        counts = reduce(self.counts)
        if reduce(self.unknown) > 0 or not bool((counts > 0).all()):
            return None
        second, first = reduce(self.second), reduce(self.first) / counts[:, None]
        cross, target = second, first
        if self.share:
            cross = torch.lerp(second, reduce(self.cross), self.share)
            target = torch.lerp(first, reduce(self.target) / counts[:, None], self.share)
        means = {path: Means(first[i], target[i]) for i, path in enumerate(self.paths)}
        return Moments(second, cross, float(counts.sum())), means


class ChannelSums:
    """Σ z and Σ z² of what a normalisation multiplies by its gain, or of a batch norm's inputs.

    Args:
        path: The normalisation.
        layer: The normalisation itself; None of a batch norm.
        channels: How many channels it has.
        like: A tensor of the sums' dtype and device.
    """

    def __init__(self, path: str, layer: nn.Module | None, channels: int, like: Tensor) -> None:
        self.path = path
        self.layer = layer
        self.sums = like.new_zeros(2, channels)
        self.count = like.new_zeros(1)
        self.unknown = like.new_zeros(1)

    def add(self, rows: Rows, targets: Rows) -> None:
        """Adds a batch.

        Args:
            rows: x by layer.
            targets: Not used.
        """
        for x in rows[self.path]:
            z = x if x is None or self.layer is None else normalised(self.layer, x)
            if z is None:
                self.unknown += 1
                continue
            wide = z.to(self.sums)
            self.sums += torch.stack([wide.sum(0), wide.square().sum(0)])
            self.count += len(wide)

    def reduced(self, reduce: Reduce) -> ChannelMoments | None:
        """Adds the sums over the processes.

        Args:
            reduce: How.

        Returns:
            The moments; None where the positions of some inputs are not known, or there are none.
        """
        count = reduce(self.count)
        if reduce(self.unknown) > 0 or not bool(count > 0):
            return None
        first, second = reduce(self.sums) / count
        return ChannelMoments(first, second)
