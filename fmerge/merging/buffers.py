"""Buffers of networks: which of them a merge merges, and which stay as they are.

A buffer that is saved with the weights belongs to the body or to a head. Of the body's, those of
floating-point numbers that differ between the models are merged with the coefficients of the
weights beside them. All others are the same in every model, except ``FROM_THE_FIRST``.
"""

from collections.abc import Collection, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.params import Params, check_finite, params_of

FROM_THE_FIRST: Final = ("num_batches_tracked",)
"""Counters that no output depends on; they may differ, and the first expert's are kept."""


def persistent_buffers(network: nn.Module) -> Params:
    """Reads the buffers that are saved with a network's weights.

    Args:
        network: Any module.

    Returns:
        Names to tensors that share memory with the network.
    """
    saved = network.state_dict(keep_vars=True).keys()
    return {name: one.detach() for name, one in network.named_buffers() if name in saved}


def shared_buffers(network: nn.Module, body: Collection[str]) -> Params:
    """Selects the persistent buffers that belong to a body.

    A buffer belongs to the innermost module around it that has parameters. It is the body's if
    all of these are.

    Args:
        network: A body under a head.
        body: The names of the body's parameters.

    Returns:
        Names to tensors that share memory with the network.
    """
    names = [name for name, _ in network.named_parameters()]

    def is_shared(place: str) -> bool:
        inside = [name for name in names if name.startswith(f"{place}." if place else "")]
        if inside or not place:
            return all(name in body for name in inside)
        return is_shared(place.rpartition(".")[0])

    found = persistent_buffers(network)
    return {name: one for name, one in found.items() if is_shared(name.rpartition(".")[0])}


def network_state(network: nn.Module, names: Collection[str] | None = None) -> Params:
    """Selects all numbers that a network computes with.

    Args:
        network: A network.
        names: The names of a body's parameters: the body alone is selected; all when None.

    Returns:
        Parameters and floating-point persistent buffers by name, sharing the network's memory.
    """
    weights = params_of(network)
    if names is None:
        return weights | _floats(persistent_buffers(network))
    body = {name: weights[name] for name in names if name in weights}
    return body | _floats(shared_buffers(network, body))


def moving_buffers(models: Mapping[str, Params]) -> list[str]:
    """Finds the buffers that are to be merged, and checks that all others are the same.

    Args:
        models: Where each model comes from to its body's buffers, of one layout; the first
            expert's first.

    Returns:
        The names of the floating-point buffers that differ between the models, in order.

    Raises:
        UserError: If a buffer that cannot be merged differs, or one holds bad numbers.
    """
    first_name, first = next(iter(models.items()))
    moving = []
    for name, tensor in first.items():
        differing = [at for at, one in models.items() if not torch.equal(one[name], tensor)]
        if differing and tensor.is_floating_point():
            moving.append(name)
        elif differing and name.rpartition(".")[2] not in FROM_THE_FIRST:
            raise UserError(
                f"{differing[0]}: buffer '{name}' of {str(tensor.dtype).removeprefix('torch.')} "
                f"differs from that in {first_name}; only floating-point numbers can be merged: "
                "merge models in which it is the same"
            )
    for at, one in models.items():
        check_finite({name: one[name] for name in moving}, at)
    return moving


def check_no_nan(buffers: Mapping[str, Tensor], name: str) -> None:
    """Checks buffers, whose infinities may be meant: a mask, or a range without bounds.

    Args:
        buffers: Names to tensors.
        name: Where they come from, for the message.

    Raises:
        UserError: If one holds a NaN.
    """
    check_finite({key: one.masked_fill(one.isinf(), 0) for key, one in buffers.items()}, name)


def restore_buffer_dtypes(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives buffers the dtypes that they had before a network was cast, in place.

    Args:
        network: The live network.
        tensors: Names of some of its buffers to tensors of those dtypes; other names are ignored.
    """
    for name, buffer in network.named_buffers():
        if name in tensors:
            buffer.data = buffer.to(tensors[name].dtype)


def nearest(name: str, weights: Collection[str]) -> str:
    """Finds the weight that a buffer stands beside, whose coefficients it gets.

    Args:
        name: The buffer.
        weights: The names of the body's parameters, in order.

    Returns:
        The first of those that share most of the buffer's path.
    """
    path = name.split(".")

    def shared(weight: str) -> int:
        pairs = zip(path, weight.split("."), strict=False)
        return next((i for i, (one, other) in enumerate(pairs) if one != other), len(path))

    return max(weights, key=shared)


def _floats(buffers: Mapping[str, Tensor]) -> Params:
    return {name: one for name, one in buffers.items() if one.is_floating_point()}
