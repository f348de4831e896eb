"""Where in a parameter the entries of a rearrangement of it come from.

The gradient of a parameter through a tensor that only holds entries of it, moved, repeated or left
out, is a sum of entries of that tensor's gradient. Their places are found by letting the functions
that move the entries move the entries' numbers too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmerge.fisher.engine.tracked_tensor import UnbatchedParameter, flat, is_unbatched

NOWHERE = -1
"""The number of an entry that comes from no parameter."""

_MOVES = {
    getattr(place, name)
    for name in (
        *("permute", "transpose", "t", "movedim", "unsqueeze", "squeeze", "reshape", "flatten"),
        *("unflatten", "chunk", "split", "unbind", "narrow", "select", "index_select", "flip"),
        *("roll", "tile", "broadcast_to"),
    )
    for place in (torch, Tensor)
}
_MOVES |= {
    getattr(Tensor, name)
    for name in ("view", "expand", "expand_as", "repeat", "view_as", "unfold", "__getitem__")
}
_MOVES |= {getattr(Tensor, name).__get__ for name in ("T", "mT")}
_KEEPS = {
    getattr(Tensor, name)
    for name in ("to", "type_as", "contiguous", "clone", "float", "double", "half", "bfloat16")
} | {torch.clone}


class Origins:
    """Remembers numbers of entries, of tensors computed from one parameter alone."""

    def __init__(self) -> None:
        # each holds the tensor whose id is its key, so that no other gets that id
        self._rows: dict[int, tuple[Tensor, int, Tensor]] = {}
        self._entries: dict[int, tuple[Tensor, int, Tensor]] = {}

    def read(self, u: Tensor, rows: Tensor) -> None:
        """Remembers rows of a table.

        Args:
            u: The rows (…, b).
            rows: Their numbers (…).
        """
        self._rows[id(u)] = (u, u._version, rows)

    def move(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Remembers the entries of what a function returned, if it moves entries alone.

        Args:
            func: A function of torch.
            args: Its arguments.
            kwargs: Its named arguments.
            result: What it returned.
        """
        if func not in _MOVES and func not in _KEEPS and func is not torch.where:
            return
        sources = [value for value in flat([args, kwargs]) if is_unbatched(value)]
        entries = self.entries(sources[0]) if len(sources) == 1 else None
        if entries is None:
            return
        if func is torch.where:
            if len(args) != 3 or is_unbatched(args[0]):
                return
            kept = (entries if is_unbatched(value) else NOWHERE for value in args[1:])
            moved: Any = torch.where(args[0], *kept)
        elif func in _KEEPS:
            moved = entries
        else:
            moved = func(*(entries if value is sources[0] else value for value in args), **kwargs)
        for u, own in zip(flat(result), flat(moved), strict=True):
            self._entries[id(u)] = (u, u._version, own)

    def rows(self, u: Tensor) -> Tensor | None:
        """Gives the rows of a table that a tensor is.

        Args:
            u: A tensor.

        Returns:
            Their numbers (…), if it is rows and was not changed since.
        """
        return _unchanged(self._rows, u)

    def entries(self, u: Tensor) -> Tensor | None:
        """Gives the entries of a parameter that a tensor is.

        Args:
            u: A tensor.

        Returns:
            Their numbers, of u's shape, ``NOWHERE`` for others; None if it is not known to
            consist of entries, or was changed since.
        """
        if type(u) is UnbatchedParameter:
            return torch.arange(u.numel(), device=u.device).view(u.shape)
        rows = self.rows(u)
        if rows is not None:
            b = u.shape[-1]
            return rows[..., None] * b + torch.arange(b, device=u.device)
        return _unchanged(self._entries, u)


def _unchanged(known: dict[int, tuple[Tensor, int, Tensor]], u: Tensor) -> Tensor | None:
    _, version, numbers = known.get(id(u), (u, None, None))
    return numbers if version == u._version else None
