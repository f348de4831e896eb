"""The fit of one level's layers, expert by expert."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fmerge.methods.calibrated import Calibrated
from fmerge.methods.layer_fits import (
    Affine,
    ChannelMoments,
    LinearFit,
    Means,
    Moments,
    fit_affine,
    fit_bias,
)
from fmerge.modules.fitted_layers import FittedLayer
from fmerge.modules.layer_order import Level
from fmerge.params import Params


@dataclass(frozen=True)
class Bodies:
    """The bodies that a calibration reads.

    Attributes:
        start: The merged body before it.
        base: θ₀; None where the method does not need it.
        experts: θₘ by name.
    """

    start: Params
    base: Params | None
    experts: Mapping[str, Params]

    def anchor(self, name: str, rho: float) -> Tensor:
        """Computes A = ρW + (1 − ρ)W₀ of one tensor.

        Args:
            name: The tensor.
            rho: ρ.

        Returns:
            A, in float32 at least.
        """
        start = self.start[name]
        start = start.to(torch.promote_types(start.dtype, torch.float32))
        if self.base is None or rho == 1:
            return start
        return torch.lerp(self.base[name].to(start), start, rho)


class LinearLevel:
    """Fits linear layers that read one input, or the layers that share one weight.

    Args:
        level: The level.
        method: How layers are fitted.
        bodies: The bodies.
        device: Where the fit is computed.
    """

    def __init__(
        self, level: Level, method: Calibrated, bodies: Bodies, device: torch.device
    ) -> None:
        self.layers = level.layers
        self.method = method
        self.bodies = bodies
        self.device = device
        # one system for all: they have one matrix of inputs
        self._fit = LinearFit(self._joined(bodies.start), method.off_diagonal)
        self._means: dict[str, Mapping[str, Means]] = {}

    def add(self, name: str, sums: tuple[Moments, Mapping[str, Means]]) -> None:
        """Adds an expert.

        Args:
            name: Its name.
            sums: What its examples gave: moments, and means by layer.
        """
        moments, self._means[name] = sums
        weight = self._joined(self.bodies.experts[name])
        self._fit.add(weight, moments, self.method.scale(moments))

    def solve(self) -> Params:
        """Fits weights, then biases.

        Returns:
            Their names to new values.
        """
        method = self.method
        anchors = {one.weight: self.bodies.anchor(one.weight, method.rho) for one in self.layers}
        found = self._fit.solve(method.r, self._joined(anchors))
        sizes = [len(one.matrix(self.bodies.start[one.weight])) for one in self.layers]
        fitted: Params = {}
        for layer, matrix in zip(self.layers, torch.split(found, sizes), strict=True):
            fitted[layer.weight] = layer.shaped(matrix, self.bodies.start[layer.weight]).cpu()
            if method.biases:
                fitted |= self._biases(layer, matrix)
        return fitted

    def _biases(self, layer: FittedLayer, matrix: Tensor) -> Params:
        experts = self.bodies.experts
        weights = [layer.matrix(experts[name][layer.weight]) for name in self._means]
        found = {}
        for path, bias in zip(layer.paths, layer.biases, strict=True):
            if bias is None:
                continue
            # layers of one input share the first one's sums
            means = [one.get(path) or next(iter(one.values())) for one in self._means.values()]
            own = [experts[name][bias] for name in self._means]
            found[bias] = fit_bias(matrix, weights, own, means).cpu()
        return found

    def _joined(self, body: Params) -> Tensor:
        return torch.cat([one.matrix(body[one.weight]).to(self.device) for one in self.layers])


class BatchNormLevel:
    """Computes the running statistics of a batch norm, over all tasks alike.

    The mean is that of the tasks' means, and the variance that of such a mixture of the tasks.

    Args:
        level: The level.
    """

    def __init__(self, level: Level) -> None:
        (self.layer,) = level.layers
        self._moments: list[ChannelMoments] = []

    def add(self, name: str, sums: ChannelMoments) -> None:
        """Adds an expert's task.

        Args:
            name: The expert's name.
            sums: What its examples gave.
        """
        self._moments.append(sums)

    def solve(self) -> Params:
        """Computes them.

        Returns:
            Their names to new values.
        """
        mean = torch.stack([one.first for one in self._moments]).mean(0)
        square = torch.stack([one.second for one in self._moments]).mean(0)
        (variance,) = self.layer.biases
        assert variance is not None  # as batch_norms makes it
        # rounding must not leave a constant channel below zero
        found = (square - mean.square()).clamp_min(0)
        return {self.layer.weight: mean.cpu(), variance: found.cpu()}


class NormLevel:
    """Fits the gain and the shift of a normalisation.

    Args:
        level: The level.
        method: How layers are fitted.
        bodies: The bodies.
        device: Where the fit is computed.
    """

    def __init__(
        self, level: Level, method: Calibrated, bodies: Bodies, device: torch.device
    ) -> None:
        (self.layer,) = level.layers
        self.method = method
        self.bodies = bodies
        self.device = device
        self._moments: dict[str, ChannelMoments] = {}

    def add(self, name: str, sums: ChannelMoments) -> None:
        """Adds an expert.

        Args:
            name: Its name.
            sums: What its examples gave.
        """
        self._moments[name] = sums

    def solve(self) -> Params:
        """Fits them.

        Returns:
            Their names to new values.
        """
        (shift,) = self.layer.biases
        names = [self.layer.weight, *([] if shift is None else [shift])]

        def of(body: Params) -> Affine:
            return Affine(*(body[name].to(self.device) for name in names))

        found = fit_affine(
            of(self.bodies.start),
            [of(self.bodies.experts[name]) for name in self._moments],
            list(self._moments.values()),
            self.method.r,
            of({name: self.bodies.anchor(name, self.method.rho) for name in names}),
        )
        values = [found.gain] if found.shift is None else [found.gain, found.shift]
        return {name: value.cpu() for name, value in zip(names, values, strict=True)}
