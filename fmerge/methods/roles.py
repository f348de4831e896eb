"""What a tensor is in its model: its role, and the depth of its layer, read from its name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fmerge.params import layer_of

Role = Literal["linear", "embedding", "norm", "bias", "other"]

# the underscore is a word character, so that \b alone misses ln_1 and bn1
_NORM = re.compile(r"norm|^ln(_|\d|$)|_ln$|^bn\d*$", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|^shared$|^wte$|^wpe$|relative_attention_bias$|bias_table$")
# ALBERT's and ELECTRA's matrices after the embeddings, and ViT's of patches, are layers
_PROJECTION = re.compile(r"proj|mapping")


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in its model.

    Attributes:
        role: ``linear``: the weight of a linear layer, two-dimensional; ``embedding``: vectors
            that are looked up by token, position or segment; ``norm``: gain or shift of a
            normalisation; ``bias``: the bias of any other layer; ``other``: all else, such as
            kernels of convolutions.
        depth: Index of its layer from 0; None outside of the layers, as for embeddings.
        layers: L, the number of layers of its stack; 0 outside of the layers. An encoder and a
            decoder are two stacks.
        inputs_first: Whether a linear layer's weight is (in, out), as of GPT-2's Conv1D, not
            (out, in).
    """

    role: Role
    depth: int | None = None
    layers: int = 0
    inputs_first: bool = False


def places_of(params: Mapping[str, Tensor]) -> dict[str, Place]:
    """Reads role and depth of every tensor of a model.

    All tensors are needed, because L is the largest index of a layer and one.

    Args:
        params: Names to tensors, as Hugging Face names them; only shapes are read.

    Returns:
        The names to their places.
    """
    numbers = {name: layer_of(name).rpartition(".") for name in params}
    layers: dict[str, int] = {}
    for stack, _, number in numbers.values():
        if number:
            layers[stack] = max(layers.get(stack, 0), int(number) + 1)
    roles = {name: role_of(name, tensor.shape) for name, tensor in params.items()}
    stacks = {name: numbers[name][0] for name, role in roles.items() if role == "linear"}
    turned = _inputs_first(params, stacks)
    places = {}
    for name, role in roles.items():
        stack, _, number = numbers[name]
        depth, count = (int(number), layers[stack]) if number else (None, 0)
        places[name] = Place(role, depth, count, name in turned)
    return places


def _inputs_first(params: Mapping[str, Tensor], stacks: Mapping[str, str]) -> set[str]:
    """Linear weights that are (in, out), told by the length of their bias, which is out."""
    # a square weight, or one without a bias, is as those of its stack are that are told
    told = {}
    for name in stacks:
        bias = params.get(f"{name.removesuffix('weight')}bias")
        rows, columns = params[name].shape
        if bias is not None and rows != columns and bias.shape in {(rows,), (columns,)}:
            told[name] = bias.shape == (columns,)
    votes: dict[str, set[bool]] = {}
    for name, turned in told.items():
        votes.setdefault(stacks[name], set()).add(turned)
    return {name for name, stack in stacks.items() if told.get(name, votes.get(stack) == {True})}


def role_of(name: str, shape: Sequence[int]) -> Role:
    """Tells a tensor's role from its name and shape.

    The orientation of a linear layer's weight is not told: GPT-2's are (in, out), most are
    (out, in), and names do not say so; ``places_of`` reads it from the biases.

    Args:
        name: For instance ``h.0.attn.c_attn.weight``.
        shape: The tensor's shape.

    Returns:
        Its role.
    """
    *_, module, last = ["", *name.split(".")]
    if len(shape) <= 1 and _NORM.search(module):
        return "norm"
    if last.endswith("bias"):
        return "bias"
    # four dimensions are a convolution over patches; a token of ViT is a parameter of its own,
    # so that its last name counts as well
    for part in (module, last):
        if len(shape) <= 3 and _EMBEDDING.search(part) and not _PROJECTION.search(part):
            return "embedding"
    return "linear" if len(shape) == 2 else "other"
