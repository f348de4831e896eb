"""The tensors that merges are assembled from: their dtypes, and a group's part of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fmerge.params import Params


def stored(
    experts: Mapping[str, Params], dtypes: Mapping[str, torch.dtype]
) -> Mapping[str, Params]:
    """Puts experts into the dtypes of their merge where these hold their numbers: to round once.

    Args:
        experts: Bodies by name.
        dtypes: The dtypes of the merge; those of the experts where left out.

    Returns:
        The bodies; what is of its dtype already is not copied.
    """

    def converted(name: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        dtype = dtypes.get(name, tensors[0].dtype)
        if all(tensor.dtype == dtype for tensor in tensors):
            return tensors
        found = [tensor.to(dtype) for tensor in tensors]
        exact = all(map(torch.equal, tensors, (t.to(tensors[0].dtype) for t in found)))
        return found if exact else tensors

    names = list(next(iter(experts.values())))
    by_name = {name: converted(name, [one[name] for one in experts.values()]) for name in names}
    return {expert: {name: by_name[name][m] for name in names} for m, expert in enumerate(experts)}


def only(tensors: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Takes a group's part of tensors or statistics.

    Args:
        tensors: By name.
        names: The group's.

    Returns:
        Those that are there: only linear layers have Grams.
    """
    return {name: tensors[name] for name in names if name in tensors}
