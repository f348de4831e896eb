"""What is supported: one rule for each layer type, all in one table.

A rule turns a layer's input and output gradient into per-example gradients of its parameters.

Letters: n example, t token, i input feature, o output feature. A layer's input x (r, …, i) and
output gradient g (r, …, o) have r = n·k rows in example-major order, k ≥ 1 rows per example.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmerge.fisher.engine.gradients import Gradients, Outer, Rows, Summed

GradientRule = Callable[[Any, Tensor, Tensor, int], Gradients | Tensor]
"""From (layer, x, g, n) to the gradients of one parameter for n examples.

x (r, …) is the layer's input and g (r, …) the gradient of its output, rows example by example.
A plain tensor (n, …), … the parameter's shape, holds every example's gradient as it is; the forms
of ``gradients.py`` need less memory."""

LayerType = type[nn.Module] | str
"""A class, or its qualified name where importing it would be expensive."""


def _always(layer: Any) -> bool:
    return True


@final
@dataclass(frozen=True, eq=False)  # two rules are the same only if they are one
class Rule:
    """How the parameters of one layer type are differentiated example by example.

    The layer's ``forward`` takes one tensor x (r, …) and returns one tensor (r, …), each row of
    which depends on the same row of x alone.

    Attributes:
        gradients: One function for each of the layer's own parameters, by the parameter's name.
        cast_input: Whether autocast runs the layer in half precision. The engine then casts x
            before the layer reads it, so that x is stored once, in half precision.
        min_ndim: Fewest dimensions of x; calls with fewer are not covered.
        max_ndim: Most dimensions of x; any number when None.
        applies: From a layer to whether the rule is valid for its options.
    """

    gradients: Mapping[str, GradientRule]
    cast_input: bool = False
    min_ndim: int = 2
    max_ndim: int | None = None
    applies: Callable[[Any], bool] = _always

    def covers(self, x: Tensor) -> bool:
        """Says whether an input has a number of dimensions that the rule is valid for."""
        fewest = max(1, self.min_ndim)  # the first dimension is that of the batch's rows
        return fewest <= x.ndim and (self.max_ndim is None or x.ndim <= self.max_ndim)


def linear_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Outer:
    """Weight (o, i) of y = x Wᵀ: Σₜ g[n,t,o] x[n,t,i]."""
    x, g = _contributing(_tokens(x, n), _tokens(g, n))
    return Outer(g, x)


def conv1d_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Outer:
    """Weight (i, o) of y = x W: Σₜ x[n,t,i] g[n,t,o]."""
    x, g = _contributing(_tokens(x, n), _tokens(g, n))
    return Outer(x, g)


def bias(layer: Any, x: Tensor, g: Tensor, n: int) -> Summed:
    """Bias (o,) that is added to every token: Σₜ g[n,t,o]."""
    return Summed(_token_sum(g, n))


def embedding_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Rows:
    """Table (v, o) read at x: row x[n,t] receives g[n,t,o]; the padding row receives nothing."""
    ids, values = x.reshape(n, -1).long(), _tokens(g, n)
    if layer.padding_idx is not None:
        values = values.masked_fill((ids == layer.padding_idx)[..., None], 0)
    return Rows(ids, values)


def layer_norm_weight(layer: nn.LayerNorm, x: Tensor, g: Tensor, n: int) -> Summed:
    """Weight (i,) of LayerNorm: Σₜ g[n,t,i] x̂[n,t,i], x̂ the input with mean 0 and variance 1."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = F.layer_norm(wide, layer.normalized_shape, eps=layer.eps)
    return Summed(_token_sum((normal * g).flatten(-len(layer.normalized_shape)), n))


def layer_norm_bias(layer: nn.LayerNorm, x: Tensor, g: Tensor, n: int) -> Summed:
    """Bias (i,) of LayerNorm: Σₜ g[n,t,i]."""
    return Summed(_token_sum(g.flatten(-len(layer.normalized_shape)), n))


def rms_norm_weight(layer: nn.RMSNorm, x: Tensor, g: Tensor, n: int) -> Summed:
    """Weight (i,) of RMSNorm: Σₜ g[n,t,i] x̂[n,t,i], x̂ the input with mean square 1."""
    normal = F.rms_norm(x, layer.normalized_shape, eps=layer.eps)
    return Summed(_token_sum((normal * g).flatten(-len(layer.normalized_shape)), n))


def transformers_rms_norm_weight(layer: Any, x: Tensor, g: Tensor, n: int) -> Summed:
    """The same for transformers' RMSNorms, which store ε in ``variance_epsilon``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = F.rms_norm(wide, wide.shape[-1:], eps=layer.variance_epsilon)
    return Summed(_token_sum(normal.to(x.dtype) * g, n))


def conv2d_weight(layer: nn.Conv2d, x: Tensor, g: Tensor, n: int) -> Outer:
    """Weight (o, i, h, w) of a convolution: that of a linear layer over patches of x (r, i, …)."""
    padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    gradients = _tokens(g.flatten(2).transpose(1, 2), n)
    return Outer(gradients, _tokens(patches.transpose(1, 2).to(g.dtype), n))


def conv2d_bias(layer: nn.Conv2d, x: Tensor, g: Tensor, n: int) -> Summed:
    """Bias (o,) of a convolution: the sum of g (r, o, …) over positions."""
    return Summed(_token_sum(g.flatten(2).transpose(1, 2), n))


def _plain_embedding(layer: nn.Embedding) -> bool:
    """These options change what the table's gradient, or the table itself, is."""
    return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse


def _plain_conv2d(layer: nn.Conv2d) -> bool:
    """``F.unfold`` has no groups and pads with zeros, by the same number on both sides."""
    return layer.groups == 1 and layer.padding_mode == "zeros" and layer.padding != "same"


_LINEAR: Final = Rule({"weight": linear_weight, "bias": bias}, cast_input=True)
_CONV1D: Final = Rule({"weight": conv1d_weight, "bias": bias}, cast_input=True)
# a batch of single ids has one dimension
_EMBEDDING: Final = Rule({"weight": embedding_weight}, min_ndim=1, applies=_plain_embedding)
_CONV2D: Final = Rule(
    {"weight": conv2d_weight, "bias": conv2d_bias},
    cast_input=True,
    min_ndim=4,
    max_ndim=4,
    applies=_plain_conv2d,
)
_RMS_NORM: Final = Rule({"weight": transformers_rms_norm_weight})

RULES: Final[dict[LayerType, Rule]] = {
    nn.Linear: _LINEAR,
    nn.Embedding: _EMBEDDING,
    nn.LayerNorm: Rule({"weight": layer_norm_weight, "bias": layer_norm_bias}),
    nn.RMSNorm: Rule({"weight": rms_norm_weight}),
    nn.Conv2d: _CONV2D,
    # by name: importing transformers takes seconds, and Fishers of other modules do not need it
    "transformers.pytorch_utils.Conv1D": _CONV1D,
    "transformers.models.t5.modeling_t5.T5LayerNorm": _RMS_NORM,
    "transformers.models.llama.modeling_llama.LlamaRMSNorm": _RMS_NORM,
    "transformers.models.mistral.modeling_mistral.MistralRMSNorm": _RMS_NORM,
    "transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm": _RMS_NORM,
    "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm": _RMS_NORM,
}
"""Every supported layer type. A subclass is not covered by its parent's rule: it may differ."""


def register_rule(layer_type: LayerType, rule: Rule) -> None:
    """Adds the rule of a layer type; Fishers that are set up afterwards use it.

    A rule that is wrong is found by the self-check, on the first batch, and is not used.

    Args:
        layer_type: The class, or its qualified name, such as ``"package.module.Class"``.
        rule: Its rule.

    Raises:
        TypeError: If it is neither a class of modules nor a name.
        ValueError: If it has a rule, or the rule covers no parameter.
    """
    if not isinstance(layer_type, str) and not (
        isinstance(layer_type, type) and issubclass(layer_type, nn.Module)
    ):
        raise TypeError(f"expected a subclass of nn.Module or its name, not {layer_type!r}")
    if not rule.gradients:
        raise ValueError(f"the rule of {_name(layer_type)} covers no parameter")
    if find_rule(layer_type) is not None:
        raise ValueError(f"{_name(layer_type)} has a rule already; call unregister_rule first")
    RULES[layer_type] = rule


def unregister_rule(layer_type: LayerType) -> None:
    """Removes the rule of a layer type; Fishers that are set up afterwards do not use it.

    Args:
        layer_type: The class, or its qualified name.

    Raises:
        ValueError: If it has no rule.
    """
    key = _key(layer_type)
    if key is None:
        raise ValueError(f"{_name(layer_type)} has no rule to remove")
    del RULES[key]


def find_rule(layer_type: LayerType) -> Rule | None:
    """Looks up the rule of a class or of its qualified name; None where it has no rule."""
    key = _key(layer_type)
    return None if key is None else RULES[key]


def rule_of(module: nn.Module) -> Rule | None:
    """Looks up the rule of a module.

    Args:
        module: Any module.

    Returns:
        The rule; None if its type has no rule, or the rule is not valid for this module.
    """
    rule = find_rule(type(module))
    if rule is None or not rule.applies(module):
        return None
    own = {name for name, _ in module.named_parameters(recurse=False)}
    # a forward function of its own computes something that the rule does not know
    return None if not own <= set(rule.gradients) or "forward" in vars(module) else rule


def _key(layer_type: LayerType) -> LayerType | None:
    """Finds a type in the table: a class or a name may be there as the one or as the other."""
    if layer_type in RULES:
        return layer_type
    name = _name(layer_type)
    if isinstance(layer_type, str):
        return next((key for key in RULES if _name(key) == name), None)
    # never by comparing names of two classes: different local classes may have the same name
    return name if name in RULES else None


def _name(layer_type: LayerType) -> str:
    if isinstance(layer_type, str):
        return layer_type
    return f"{layer_type.__module__}.{layer_type.__qualname__}"


def _tokens(values: Tensor, n: int) -> Tensor:
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


def _token_sum(values: Tensor, n: int) -> Tensor:
    """Sums (r, …, i) over each example's tokens to (n, i), in float32 at least."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return _tokens(values, n).sum(1, dtype=wide)
