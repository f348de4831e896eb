"""Layers' functions, which models also call without the layer: the rule of each.

A subclass of a layer has no rule, since its ``forward`` may be any; but where it calls its parent's
function with its parameters as arguments, the rule of that function holds for the call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmerge.fisher.engine.formulas import conv1d_weight, left_factor
from fmerge.fisher.engine.rules import RULES, LayerType, Rule
from fmerge.fisher.engine.tracked_tensor import is_tracked

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Function:
    """A function of torch that takes a layer's parameters.

    Attributes:
        names: Its arguments' names, in order.
        rule: Its rule, or the layer type whose rule it is.
        options: From its arguments to what the rule reads of a layer; None where the rule does not
            hold for them.
        x: The name of the input.
        parameters: The rule's name of each parameter, and the argument it is.
        tokenwise: Whether each token of x (r, t, …) has a result of its own.
    """

    names: tuple[str, ...]
    rule: Rule | LayerType
    options: Callable[[Arguments], Any]
    x: str
    parameters: Mapping[str, str]
    tokenwise: bool = False

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Names the arguments of a call."""
        return dict(zip(self.names, args, strict=False)) | dict(kwargs)

    def positional(self, args: tuple[Any, ...], x: Tensor) -> tuple[Any, ...]:
        """Puts another input and detached parameters among the positional arguments."""
        named = self.named(dict(zip(self.names, args, strict=False)), x)
        return tuple(named.values())

    def named(self, kwargs: Arguments, x: Tensor) -> dict[str, Any]:
        """The same for keyword arguments."""
        return {
            name: x if name == self.x else value.detach() if is_tracked(value) else value
            for name, value in kwargs.items()
        }

    def found_rule(self) -> Rule | None:
        """Gives its rule; None where the layer's was unregistered."""
        return self.rule if isinstance(self.rule, Rule) else RULES.get(self.rule)


def _function(
    names: str,
    rule: Rule | LayerType,
    options: Callable[[Arguments], Any] = lambda given: SimpleNamespace(),
    x: str = "input",
    weight: str = "weight",
    **more: bool,
) -> Function:
    split = tuple(names.split())
    parameters = {"weight": weight} | ({"bias": "bias"} if "bias" in split else {})
    return Function(split, rule, options, x, parameters=parameters, **more)


def _embedding(given: Arguments) -> Any:
    if any(given.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse")):
        return None
    return SimpleNamespace(padding_idx=given.get("padding_idx"))


def _normalisation(given: Arguments) -> Any:
    return SimpleNamespace(
        normalized_shape=tuple(given["normalized_shape"]), eps=given.get("eps", 1e-5)
    )


def _rms(given: Arguments) -> Any:
    return SimpleNamespace(normalized_shape=tuple(given["normalized_shape"]), eps=given.get("eps"))


def _groups(given: Arguments) -> Any:
    return SimpleNamespace(num_groups=given["num_groups"], eps=given.get("eps", 1e-5))


def _stored_statistics(given: Arguments) -> Any:
    """Statistics of the batch are those of all examples: no rule holds."""
    if given.get("training") or given.get("running_mean") is None:
        return None
    return SimpleNamespace(
        running_mean=given["running_mean"],
        running_var=given["running_var"],
        eps=given.get("eps", 1e-5),
    )


def _convolution(given: Arguments) -> Any:
    weight = given["weight"]
    if given["input"].ndim != weight.ndim:  # a single example without a dimension of rows
        return None
    return SimpleNamespace(
        kernel_size=tuple(weight.shape[2:]),
        stride=given.get("stride", 1),
        padding=given.get("padding", 0),
        dilation=given.get("dilation", 1),
        groups=given.get("groups", 1),
    )


def _matrix(side: str, fewest: int) -> Callable[[Arguments], Any]:
    """Products of an input with one matrix."""

    def options(given: Arguments) -> Any:
        other = "input" if side == "other" else "other"
        fits = given[side].ndim == 2 and given[other].ndim >= fewest
        return SimpleNamespace() if fits else None

    return options


_RIGHT: Final = _function(
    "input other",
    Rule({"weight": conv1d_weight}, cast_input=True),
    _matrix("other", 2),
    weight="other",
)
_LEFT: Final = _function(
    "input other",
    Rule({"weight": left_factor}, cast_input=True, min_ndim=3),
    _matrix("input", 3),
    x="other",
    weight="input",
)
_PRODUCTS: Final = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
_CONVOLUTION: Final = "input weight bias stride padding dilation groups"

FUNCTIONS: Final[Mapping[Callable[..., Any], tuple[Function, ...]]] = {
    F.linear: (_function("input weight bias", nn.Linear, tokenwise=True),),
    F.embedding: (
        _function(
            "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse",
            nn.Embedding,
            _embedding,
        ),
    ),
    F.layer_norm: (
        _function(
            "input normalized_shape weight bias eps", nn.LayerNorm, _normalisation, tokenwise=True
        ),
    ),
    F.rms_norm: (_function("input normalized_shape weight eps", nn.RMSNorm, _rms),),
    F.group_norm: (_function("input num_groups weight bias eps", nn.GroupNorm, _groups),),
    F.batch_norm: (
        _function(
            "input running_mean running_var weight bias training momentum eps",
            nn.BatchNorm2d,
            _stored_statistics,
        ),
    ),
    F.conv1d: (_function(_CONVOLUTION, nn.Conv1d, _convolution),),
    F.conv2d: (_function(_CONVOLUTION, nn.Conv2d, _convolution),),
    F.conv3d: (_function(_CONVOLUTION, nn.Conv3d, _convolution),),
    **dict.fromkeys(_PRODUCTS, (_RIGHT, _LEFT)),
}
"""By function, the ways in which it may meet a parameter; the first that fits a call is used."""

COMPOSED: Final = {F.multi_head_attention_forward}
"""Functions of torch in Python that hand themselves over to a tracked argument, but call others of
the table with it: these are to be seen."""


@cache
def opened(function: FunctionType) -> Callable[..., Any]:
    """Gives a function's body, without what hands it over to tracked arguments.

    Args:
        function: One of ``COMPOSED``.

    Returns:
        The same code, in whose globals no argument is said to be tracked.
    """
    names = function.__globals__ | {"has_torch_function": lambda _: False}
    body = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body
