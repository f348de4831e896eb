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

from fmerge.fisher.engine.convolutions import (
    batch_norm_weight,
    channel_bias,
    convolution_weight,
    group_norm_weight,
)
from fmerge.fisher.engine.experts import EXPERTS, are_fused_experts
from fmerge.fisher.engine.formulas import (
    bias,
    conv1d_weight,
    embedding_weight,
    layer_norm_bias,
    layer_norm_weight,
    linear_weight,
    rms_norm_weight,
    transformers_rms_norm_weight,
)
from fmerge.fisher.engine.gradients import Gradients

GradientRule = Callable[[Any, Tensor, Tensor, int], Gradients | Tensor]
"""From (layer, x, g, n) to the gradients of one parameter for n examples.

x (r, …) is the layer's input and g (r, …) the gradient of its output, rows example by example.
A plain tensor (n, …), … the parameter's shape, holds every example's gradient as it is; the forms
of ``gradients.py`` need less memory."""

LayerType = type[nn.Module] | str
"""A class, or its qualified name where importing it would be expensive."""

_CAST = (torch.float32, torch.bfloat16, torch.float16)  # autocast leaves float64 as it is


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

    def cast(self, x: Any) -> Any:
        """Casts an input as autocast would inside the layer, so that it is stored once."""
        if not (self.cast_input and isinstance(x, Tensor)):
            return x
        if not torch.is_autocast_enabled(x.device.type):
            return x
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype) if x.dtype in _CAST and x.dtype != dtype else x


def _plain_embedding(layer: nn.Embedding) -> bool:
    """These options change what the table's gradient, or the table itself, is."""
    return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse


def _has_statistics(layer: Any) -> bool:
    """Statistics of the batch are those of all examples together: no rule holds."""
    return layer.running_mean is not None and layer.running_var is not None


def _pads_with_zeros(layer: Any) -> bool:
    """Other modes pad the input before the convolution; its function has the rule then."""
    return bool(layer.padding_mode == "zeros")


_LINEAR: Final = Rule({"weight": linear_weight, "bias": bias}, cast_input=True)
_CONV1D: Final = Rule({"weight": conv1d_weight, "bias": bias}, cast_input=True)
# a batch of single ids has one dimension
_EMBEDDING: Final = Rule({"weight": embedding_weight}, min_ndim=1, applies=_plain_embedding)


def _convolution(dims: int) -> Rule:
    return Rule(
        {"weight": convolution_weight, "bias": channel_bias},
        cast_input=True,
        min_ndim=dims + 2,
        max_ndim=dims + 2,
        applies=_pads_with_zeros,
    )


_BATCH_NORM: Final = Rule(
    {"weight": batch_norm_weight, "bias": channel_bias}, applies=_has_statistics
)
_RMS_NORM: Final = Rule({"weight": transformers_rms_norm_weight})

RULES: Final[dict[LayerType, Rule]] = {
    nn.Linear: _LINEAR,
    nn.Embedding: _EMBEDDING,
    nn.LayerNorm: Rule({"weight": layer_norm_weight, "bias": layer_norm_bias}),
    nn.RMSNorm: Rule({"weight": rms_norm_weight}),
    nn.GroupNorm: Rule({"weight": group_norm_weight, "bias": channel_bias}),
    nn.Conv1d: _convolution(1),
    nn.Conv2d: _convolution(2),
    nn.Conv3d: _convolution(3),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    # by name: importing transformers takes seconds, and Fishers of other modules do not need it
    "transformers.pytorch_utils.Conv1D": _CONV1D,
    "transformers.models.t5.modeling_t5.T5LayerNorm": _RMS_NORM,
    "transformers.models.llama.modeling_llama.LlamaRMSNorm": _RMS_NORM,
    "transformers.models.mistral.modeling_mistral.MistralRMSNorm": _RMS_NORM,
    "transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm": _RMS_NORM,
    "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm": _RMS_NORM,
}
"""Every supported layer type. A subclass is not covered by its parent's rule: it may differ."""


FUSED_EXPERTS: Final = Rule(EXPERTS, cast_input=True)
"""That of every class that transformers runs by any of its implementations of experts."""


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
    if rule is None and are_fused_experts(module):
        rule = FUSED_EXPERTS
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
