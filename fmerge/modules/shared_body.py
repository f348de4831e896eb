"""One body object for the networks of several tasks."""

from collections.abc import Collection
from typing import Any

from torch import nn

from fmerge.params import head_parts


def share_body(model: Any, first: Any, apart: Collection[str]) -> None:
    """Gives a network the body of another one.

    Args:
        model: A Hugging Face model, whose body is replaced.
        first: The model whose body it gets.
        apart: Names of the body's tensors that it keeps, such as those of a pooler.
    """
    if model.base_model is model:  # its body is several parts, beside the head
        _share_rest(model, first, head_parts(model))
    elif apart:
        prefix = f"{model.base_model_prefix}."
        kept = {name.removeprefix(prefix).partition(".")[0] for name in apart}
        _share_rest(model.base_model, first.base_model, kept)
    else:
        setattr(model, model.base_model_prefix, first.base_model)


def share_parts(own: nn.Module, first: nn.Module, body: Collection[str]) -> None:
    """Gives any network the body of another one of its kind, part by part.

    Args:
        own: The network, whose parts are replaced.
        first: The network whose parts it gets.
        body: Names of the parameters of the body.
    """
    for name, one in first.named_parameters(recurse=False):
        if name in body:
            setattr(own, name, one)
    for name, part in first.named_children():
        inside = [key for key, _ in part.named_parameters()]
        shared = {key.removeprefix(f"{name}.") for key in body if key.startswith(f"{name}.")}
        if inside and shared.issuperset(inside):
            setattr(own, name, part)  # with its buffers
        elif shared:
            share_parts(getattr(own, name), part, shared)


def _share_rest(own: nn.Module, shared: nn.Module, kept: Collection[str]) -> None:
    """Shares a network but for the parts that a task keeps."""
    # children, and the body's own parameters and buffers
    names = [name for name, _ in own.named_children()]
    names += [name for name, _ in own.named_parameters(recurse=False)]
    names += [name for name, _ in own.named_buffers(recurse=False)]
    for name in names:
        if name not in kept:
            setattr(own, name, getattr(shared, name))
