"""Per-example gradients of parameters: the functions that the table of rules is made of.

Each takes (layer, x, g, n). Letters: n example, t token, i input feature, o output feature. A
layer's input x (r, …, i) and output gradient g (r, …, o) have r = n·k rows in example-major order,
k ≥ 1 rows per example.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmerge.fisher.engine.gradients import Outer, Rows, Summed


def linear_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Outer:
    """Weight (o, i) of y = x Wᵀ: Σₜ g[n,t,o] x[n,t,i]."""
    x, g = _contributing(tokens_of(x, n), tokens_of(g, n))
    return Outer(g, x)


def conv1d_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Outer:
    """Weight (i, o) of y = x W: Σₜ x[n,t,i] g[n,t,o]."""
    x, g = _contributing(tokens_of(x, n), tokens_of(g, n))
    return Outer(x, g)


def left_factor(layer: Any, x: Tensor, g: Tensor, n: int) -> Outer:
    """Matrix W (o, i) of y = W x with x (r, …, i, t): Σₜ g[n,o,t] x[n,i,t]."""
    return linear_weight(layer, x.transpose(-1, -2), g.transpose(-1, -2), n)


def bias(layer: Any, x: Tensor, g: Tensor, n: int) -> Summed:
    """Bias (o,) that is added to every token: Σₜ g[n,t,o]."""
    return Summed(token_sum(g, n))


def embedding_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Rows:
    """Table (v, o) read at x: row x[n,t] receives g[n,t,o]; the padding row receives nothing."""
    ids, values = x.reshape(n, -1).long(), tokens_of(g, n)
    if layer.padding_idx is not None:
        values = values.masked_fill((ids == layer.padding_idx)[..., None], 0)
    return Rows(ids, values)


def layer_norm_weight(layer: nn.LayerNorm, x: Tensor, g: Tensor, n: int) -> Summed:
    """Weight (i,) of LayerNorm: Σₜ g[n,t,i] x̂[n,t,i], x̂ the input with mean 0 and variance 1."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = F.layer_norm(wide, layer.normalized_shape, eps=layer.eps)
    return Summed(token_sum((normal * g).flatten(-len(layer.normalized_shape)), n))


def layer_norm_bias(layer: nn.LayerNorm, x: Tensor, g: Tensor, n: int) -> Summed:
    """Bias (i,) of LayerNorm: Σₜ g[n,t,i]."""
    return Summed(token_sum(g.flatten(-len(layer.normalized_shape)), n))


def rms_norm_weight(layer: nn.RMSNorm, x: Tensor, g: Tensor, n: int) -> Summed:
    """Weight (i,) of RMSNorm: Σₜ g[n,t,i] x̂[n,t,i], x̂ the input with mean square 1."""
    normal = F.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    return Summed(token_sum((normal * g).flatten(-len(layer.normalized_shape)), n))


def transformers_rms_norm_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Summed:
    """The same for transformers' RMSNorms, which store ε in ``variance_epsilon``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = F.rms_norm(wide, wide.shape[-1:], eps=layer.variance_epsilon)
    return Summed(token_sum(normal.to(x.dtype) * g, n))


def tokens_of(values: Tensor, n: int) -> Tensor:
    """(r, …, i) to (n, t, i)."""
    return values.reshape(n, -1, values.shape[-1])


def _contributing(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Leaves out tokens whose gradient is zero: padding, other answers, all but a pooled token.

    The copies pay off if they save a quarter of the tokens. On an accelerator nothing is left out:
    it multiplies zeros faster than they are counted, and counting would wait for the device.

    Args:
        x: Input (n, t, i).
        g: Output gradient (n, t, o).

    Returns:
        Both, with as many tokens as the example with most has.
    """
    if g.device.type != "cpu":
        return x.to(g.dtype), g
    # the first feature is a cheap test: where it is nonzero for most tokens, they contribute
    first = g[..., 0] != 0
    if 4 * int(first.sum(1).max()) > 3 * first.shape[1]:
        return x.to(g.dtype), g
    present = (g.amax(-1) != 0) | (g.amin(-1) != 0)
    most = int(present.sum(1).max())
    if 4 * most > 3 * present.shape[1]:
        return x.to(g.dtype), g
    # a stable sort puts each example's contributing tokens first, in their own order
    tokens = present.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : max(1, most)]
    x, g = (side.gather(1, tokens[..., None].expand(-1, -1, side.shape[-1])) for side in (x, g))
    return x.to(g.dtype), g


def token_sum(values: Tensor, n: int) -> Tensor:
    """Sums (r, …, i) over each example's tokens to (n, i), in float32 at least."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return tokens_of(values, n).sum(1, dtype=wide)
