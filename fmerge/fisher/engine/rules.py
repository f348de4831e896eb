"""One rule per layer type: from a layer's input and output gradient to per-example gradients.

Letters: n example, t token, i input feature, o output feature. A layer's input x (r, …, i) and
output gradient g (r, …, o) have r = n·k rows, example by example, k ≥ 1 rows each.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from fmerge.fisher.engine.gradients import Outer, Rows, Summed, Term

Rule = Callable[[Any, Tensor, Tensor, int], Term]
"""(layer, x, g, n) to the gradients of one of the layer's parameters."""


def linear_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Term:
    """Weight (o, i) of y = x Wᵀ: gradient Σₜ g[n,t,o] x[n,t,i].

    Args:
        layer: The layer.
        x: Input (r, …, i).
        g: Output gradient (r, …, o).
        n: Number of examples.

    Returns:
        The gradients.
    """
    x, g = _contributing(_tokens(x, n), _tokens(g, n))
    return Outer(g, x)


def conv1d_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Term:
    """Weight (i, o) of y = x W: gradient Σₜ x[n,t,i] g[n,t,o].

    Args:
        layer: The layer.
        x: Input (r, …, i).
        g: Output gradient (r, …, o).
        n: Number of examples.

    Returns:
        The gradients.
    """
    x, g = _contributing(_tokens(x, n), _tokens(g, n))
    return Outer(x, g)


def added(layer: Any, x: Tensor, g: Tensor, n: int) -> Term:
    """A bias (o,): gradient Σₜ g[n,t,o].

    Args:
        layer: The layer.
        x: Not used.
        g: Output gradient (r, …, o).
        n: Number of examples.

    Returns:
        The gradients.
    """
    return Summed(_token_sum(g, n))


def embedding_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Term:
    """A table (v, o) read at x: row x[n,t] receives g[n,t]; the padding row nothing.

    Args:
        layer: Anything with ``padding_idx``.
        x: Rows (r, …).
        g: Output gradient (r, …, o).
        n: Number of examples.

    Returns:
        The gradients.
    """
    ids, values = x.reshape(n, -1).long(), _tokens(g, n)
    if layer.padding_idx is not None:
        values = values.masked_fill((ids == layer.padding_idx)[..., None], 0)
    return Rows(ids, values)


def layer_norm_weight(layer: nn.LayerNorm, x: Tensor, g: Tensor, n: int) -> Term:
    """Weight of LayerNorm: gradient Σₜ g[n,t] x̂[n,t], x̂ the input with mean 0 and variance 1.

    Args:
        layer: The layer.
        x: Input (r, …, i).
        g: Output gradient (r, …, i).
        n: Number of examples.

    Returns:
        The gradients.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = F.layer_norm(wide, layer.normalized_shape, eps=layer.eps)
    return Summed(_token_sum((normal * g).flatten(-len(layer.normalized_shape)), n))


def layer_norm_bias(layer: nn.LayerNorm, x: Tensor, g: Tensor, n: int) -> Term:
    """Bias of LayerNorm: gradient Σₜ g[n,t].

    Args:
        layer: The layer.
        x: Not used.
        g: Output gradient (r, …, i).
        n: Number of examples.

    Returns:
        The gradients.
    """
    return Summed(_token_sum(g.flatten(-len(layer.normalized_shape)), n))


def rms_norm_weight(layer: nn.RMSNorm, x: Tensor, g: Tensor, n: int) -> Term:
    """Weight of RMSNorm: gradient Σₜ g[n,t] x̂[n,t], x̂ the input with mean square 1.

    Args:
        layer: The layer.
        x: Input (r, …, i).
        g: Output gradient (r, …, i).
        n: Number of examples.

    Returns:
        The gradients.
    """
    normal = F.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    return Summed(_token_sum((normal * g).flatten(-len(layer.normalized_shape)), n))


def root_mean_square_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Term:
    """The same for transformers' RMSNorms, which keep ε in ``variance_epsilon``.

    Args:
        layer: The layer.
        x: Input (r, …, i).
        g: Output gradient (r, …, i).
        n: Number of examples.

    Returns:
        The gradients.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = F.rms_norm(wide, wide.shape[-1:], eps=layer.variance_epsilon)
    return Summed(_token_sum(normal.to(x.dtype) * g, n))


def conv2d_weight(layer: nn.Conv2d, x: Tensor, g: Tensor, n: int) -> Term:
    """Weight (o, i, h, w) of a convolution: that of a linear layer over its patches.

    Args:
        layer: The layer.
        x: Input (r, i, …, …).
        g: Output gradient (r, o, …, …).
        n: Number of examples.

    Returns:
        The gradients.
    """
    padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    gradients = _tokens(g.flatten(2).transpose(1, 2), n)
    return Outer(gradients, _tokens(patches.transpose(1, 2).to(g.dtype), n))


def conv2d_bias(layer: nn.Conv2d, x: Tensor, g: Tensor, n: int) -> Term:
    """Bias (o,) of a convolution: gradient Σ over positions of g.

    Args:
        layer: The layer.
        x: Not used.
        g: Output gradient (r, o, …, …).
        n: Number of examples.

    Returns:
        The gradients.
    """
    return Summed(_token_sum(g.flatten(2).transpose(1, 2), n))


_RMS_NORM: Final[Mapping[str, Rule]] = {"weight": root_mean_square_weight}

RULES: Final[dict[type[nn.Module], Mapping[str, Rule]]] = {
    nn.Linear: {"weight": linear_weight, "bias": added},
    Conv1D: {"weight": conv1d_weight, "bias": added},
    nn.Embedding: {"weight": embedding_weight},
    nn.LayerNorm: {"weight": layer_norm_weight, "bias": layer_norm_bias},
    nn.RMSNorm: {"weight": rms_norm_weight},
    T5LayerNorm: _RMS_NORM,
    LlamaRMSNorm: _RMS_NORM,
    MistralRMSNorm: _RMS_NORM,
    Qwen2RMSNorm: _RMS_NORM,
    Qwen3RMSNorm: _RMS_NORM,
    nn.Conv2d: {"weight": conv2d_weight, "bias": conv2d_bias},
}
"""What is covered: layer type to parameter name to rule. Subclasses are not: they may differ."""


def rules_of(module: nn.Module) -> Mapping[str, Rule]:
    """Looks a module's rules up.

    Args:
        module: Any module.

    Returns:
        Rules by parameter name; empty where none is valid for this very module.
    """
    rules = RULES.get(type(module), {})
    own = {name for name, _ in module.named_parameters(recurse=False)}
    if not own <= set(rules) or "forward" in vars(module):
        return {}
    if isinstance(module, nn.Embedding) and (
        module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    ):
        return {}
    if isinstance(module, nn.Conv2d) and (
        module.groups != 1 or module.padding_mode != "zeros" or module.padding == "same"
    ):
        return {}
    return rules


def _tokens(values: Tensor, n: int) -> Tensor:
    """(r, …, i) to (n, t, i)."""
    return values.reshape(n, -1, values.shape[-1])


def _contributing(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Leaves out tokens whose gradient is zero: padding, other answers, all but a pooled token.

    A quarter must be saved for the copies to be worth it. On an accelerator, where zeros are
    multiplied faster than they are counted, nothing is left out: nothing waits for the device.

    Args:
        x: Input (n, t, i).
        g: Output gradient (n, t, o).

    Returns:
        Both, with as many tokens as the example has that has most.
    """
    if g.device.type != "cpu":
        return x.to(g.dtype), g
    first = g[..., 0] != 0  # says it already, where all tokens contribute
    if 4 * int(first.sum(1).max()) > 3 * first.shape[1]:
        return x.to(g.dtype), g
    present = (g.amax(-1) != 0) | (g.amin(-1) != 0)
    most = int(present.sum(1).max())
    if 4 * most > 3 * present.shape[1]:
        return x.to(g.dtype), g
    tokens = present.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : max(1, most)]
    x, g = (side.gather(1, tokens[..., None].expand(-1, -1, side.shape[-1])) for side in (x, g))
    return x.to(g.dtype), g


def _token_sum(values: Tensor, n: int) -> Tensor:
    wide = torch.promote_types(values.dtype, torch.float32)
    return _tokens(values, n).sum(1, dtype=wide)
