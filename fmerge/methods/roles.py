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
    """

    role: Role
    depth: int | None = None
    layers: int = 0


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
    places = {}
    for name, tensor in params.items():
        role, (stack, _, number) = role_of(name, tensor.shape), numbers[name]
        places[name] = Place(role, int(number), layers[stack]) if number else Place(role)
    return places


def role_of(name: str, shape: Sequence[int]) -> Role:
    """Tells a tensor's role from its name and shape.

    The orientation of a linear layer's weight is not told: GPT-2's are (in, out), most are
    (out, in), and names do not say so.

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
