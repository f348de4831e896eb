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


def _share_rest(own: nn.Module, shared: nn.Module, kept: Collection[str]) -> None:
    """Shares a network but for the parts that a task keeps."""
    # children, and the body's own parameters and buffers
    names = [name for name, _ in own.named_children()]
    names += [name for name, _ in own.named_parameters(recurse=False)]
    names += [name for name, _ in own.named_buffers(recurse=False)]
    for name in names:
        if name not in kept:
            setattr(own, name, getattr(shared, name))
