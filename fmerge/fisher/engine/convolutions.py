"""Per-example gradients of convolutions, and of normalisations of channels.

Letters: r rows, n example, i input channel, o output channel; an input x (r, i, …) and an output
gradient g (r, o, …) have one, two or three dimensions of positions.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from fmerge.fisher.engine.formulas import token_sum, tokens_of
from fmerge.fisher.engine.gradients import Outer, Summed

_DENSE: Final[dict[int, Callable[..., Tensor]]] = {
    1: conv1d_weight,
    2: conv2d_weight,
    3: conv3d_weight,
}


def convolution_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Outer | Summed:
    """Weight (o, i / groups, …) of a convolution that pads with zeros.

    Without groups it is the weight of a linear layer over patches of x. With groups, rows become
    groups of one convolution, whose weight's gradient is then that of every row: for depthwise
    kernels that is as fast as the summed gradient, and n of them are small.

    Args:
        layer: What has ``kernel_size``, ``stride``, ``padding``, ``dilation`` and ``groups``.
        x: Input (r, i, …).
        g: Output gradient (r, o, …).
        n: Number of examples.

    Returns:
        The gradients of n examples.
    """
    dims = x.ndim - 2
    x, padding = _padded(layer, x.to(g.dtype), dims)
    stride, dilation = (_each(value, dims) for value in (layer.stride, layer.dilation))
    kernel = tuple(layer.kernel_size)
    if layer.groups == 1 and dims < 3:
        if dims == 1:  # an image of height one
            x, kernel = x[:, :, None], (1, *kernel)
            stride, dilation, padding = (1, *stride), (1, *dilation), (0, *padding)
        patches = F.unfold(x, kernel, dilation, padding, stride).transpose(1, 2)
        return Outer(tokens_of(g.flatten(2).transpose(1, 2), n), tokens_of(patches, n))
    rows, outputs = g.shape[:2]
    shape = (rows * outputs, x.shape[1] // layer.groups, *kernel)
    every = _DENSE[dims](
        x.reshape(1, -1, *x.shape[2:]),
        shape,
        g.reshape(1, -1, *g.shape[2:]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=rows * layer.groups,
    )
    return Summed(token_sum(every.reshape(rows, math.prod(every.shape) // rows), n))


def channel_bias(layer: Any, x: Tensor, g: Tensor, n: int) -> Summed:
    """Bias (o,) of channels: the sum of g (r, o, …) over positions."""
    return Summed(token_sum(_channels_last(g), n))


def batch_norm_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Summed:
    """Weight (i,) of batch normalisation by stored statistics: Σ over positions of g x̂."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, variance = (
        stored.to(torch.promote_types(x.dtype, torch.float32)).view(shape)
        for stored in (layer.running_mean, layer.running_var)
    )
    normal = (x - mean) * (variance + layer.eps).rsqrt()
    return Summed(token_sum(_channels_last(normal * g), n))


def group_norm_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Summed:
    """Weight (i,) of group normalisation: Σ over positions of g x̂."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = F.group_norm(wide, layer.num_groups, eps=layer.eps)
    return Summed(token_sum(_channels_last(normal * g), n))


def _channels_last(values: Tensor) -> Tensor:
    """(r, i, …) to (r, positions, i)."""
    return values.reshape(*values.shape[:2], -1).transpose(1, 2)


def _padded(layer: Any, x: Tensor, dims: int) -> tuple[Tensor, tuple[int, ...]]:
    """Pads where ``same`` may need one zero more on the right; else gives how many are needed."""
    if layer.padding == "valid":
        return x, (0,) * dims
    if layer.padding != "same":
        return x, _each(layer.padding, dims)
    ends: list[int] = []
    for size, step in zip(layer.kernel_size, _each(layer.dilation, dims), strict=True):
        total = step * (size - 1)
        ends = [total // 2, total - total // 2, *ends]  # F.pad begins at the last dimension
    return F.pad(x, ends), (0,) * dims


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension of positions."""
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) * (dims if len(value) == 1 else 1)
