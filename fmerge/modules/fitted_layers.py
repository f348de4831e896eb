"""The layers of a network that a calibration fits, and the rows that enter them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fmerge.modules.gram_pass import linear_weights

Kind = Literal["linear", "convolution", "norm", "batch norm"]


@dataclass(frozen=True)
class FittedLayer:
    """A weight that is fitted, with the layers that use it.

    Attributes:
        weight: The weight's name in the network; of a batch norm its running mean's.
        kind: What its layers are.
        paths: Where its layers are in the network: several where they share the weight.
        biases: The name of each layer's bias; None where it has none, or one that others use too.
            Of a batch norm the running variance's.
        inputs_first: Whether the weight is (in, out), as of GPT-2's Conv1D.
    """

    weight: str
    kind: Kind
    paths: tuple[str, ...]
    biases: tuple[str | None, ...]
    inputs_first: bool = False

    def matrix(self, weight: Tensor) -> Tensor:
        """Views the weight as (out, in), a kernel as (out, channels · height · width).

        Args:
            weight: The weight.

        Returns:
            The view.
        """
        return weight.T if self.inputs_first else weight.flatten(1)

    def shaped(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Undoes ``matrix``.

        Args:
            matrix: A matrix (out, in).
            like: A weight of the right shape.

        Returns:
            The weight.
        """
        return matrix.T if self.inputs_first else matrix.reshape(like.shape)


def fitted_layers(
    network: nn.Module, among: Collection[str], norms: bool
) -> tuple[list[FittedLayer], list[str]]:
    """Finds the layers that can be fitted.

    Args:
        network: A task's network.
        among: Names of its parameters: those that a merge changes.
        norms: Whether normalisations are fitted.

    Returns:
        The layers, and the weights of convolutions that cannot be fitted. Linear layers are those
        of ``linear_weights``.
    """
    names = {parameter: name for name, parameter in network.named_parameters()}
    paths = {module: path for path, module in network.named_modules()}
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in paths:
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)

    def made(kind: Kind, weight: str, layers: Sequence[nn.Module], first: bool) -> FittedLayer:
        found: list[str | None] = []
        for layer in layers:
            bias = getattr(layer, "bias", None)
            own = bias if isinstance(bias, nn.Parameter) and len(users[bias]) == 1 else None
            found.append(names[own] if own is not None and names[own] in among else None)
        return FittedLayer(weight, kind, tuple(paths[one] for one in layers), tuple(found), first)

    linear = linear_weights(network, among)
    kernels = {name for name, one in linear.items() if isinstance(one.layers[0], nn.Conv2d)}
    fitted = [
        made("linear", name, one.layers, one.inputs_first)
        for name, one in linear.items()
        if name not in kernels
    ]
    left = []
    for module in paths:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or names[weight] not in among:
            continue
        if isinstance(module, nn.modules.conv._ConvNd):
            if names[weight] in kernels and len(users[weight]) == 1:
                fitted.append(made("convolution", names[weight], [module], False))
            else:
                left.append(names[weight])
        elif norms and _is_norm(module) and len(users[weight]) == 1:
            fitted.append(made("norm", names[weight], [module], False))
    return fitted, left


def batch_norms(network: nn.Module, among: Collection[str]) -> list[FittedLayer]:
    """Finds the batch norms whose running statistics are computed anew.

    Args:
        network: A task's network.
        among: Names of the parameters and buffers that a merge changes.

    Returns:
        The layers.
    """
    return [
        FittedLayer(f"{path}.running_mean", "batch norm", (path,), (f"{path}.running_var",))
        for path, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and f"{path}.running_mean" in among
        and f"{path}.running_var" in among
    ]


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a normalisation over the last dimension, with a gain and perhaps a shift."""
    named = isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith((
        "LayerNorm",
        "RMSNorm",
    ))
    own = dict(module.named_parameters())
    return named and own.keys() <= {"weight", "bias"} and all(p.ndim == 1 for p in own.values())


def normalised(layer: nn.Module, x: Tensor) -> Tensor | None:
    """Computes what a normalisation multiplies by its gain.

    Args:
        layer: The normalisation, y = u + γz + β, whose u is zero or depends on x alone.
        x: Rows (p, i).

    Returns:
        z (p, i); None where the layer is of another form.
    """
    own = dict(layer.named_parameters())
    x = x.to(own["weight"])
    if not len(x):
        return x

    def at(gain: float) -> Tensor:
        values = {"weight": gain, "bias": 0.0}
        flat = {name: torch.full_like(one, values[name]) for name, one in own.items()}
        with borrowing(own, flat):
            result: Tensor = layer.forward(x)
            return result

    low = at(0.0)
    z = at(1.0) - low
    y = low + own["weight"] * z
    y = y + own["bias"] if "bias" in own else y
    same = torch.allclose(layer.forward(x), y, rtol=1e-2, atol=1e-2 * float(y.abs().amax()))
    return z if same else None


@contextmanager
def borrowing(own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[None]:
    """Lets parameters and buffers point to other tensors, which are not copied.

    Args:
        own: A network's parameters and buffers by name.
        others: Tensors of the same shapes, dtypes and device, for some of the names.

    Yields:
        Nothing; the network has its own tensors again afterwards.
    """
    saved = {name: own[name].data for name in others}
    try:
        for name, one in others.items():
            own[name].data = one
        yield
    finally:
        for name, one in saved.items():
            own[name].data = one


def state_of(network: nn.Module) -> dict[str, Any]:
    """Lists a network's parameters and buffers.

    Args:
        network: The network.

    Returns:
        Names to the live tensors.
    """
    return dict(network.named_parameters()) | dict(network.named_buffers())
