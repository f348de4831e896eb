"""Where the entries of a rearranged parameter come from.

Some tensors hold only entries of one parameter: permuted, repeated, selected or masked. The
parameter's gradient through such a tensor is scattered: every entry of the tensor's gradient is
added to the parameter's entry that it came from. The map of these indices is found by running the
same torch functions on a tensor of indices.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fmerge.fisher.engine.tracked_tensor import TrackedParameter, flatten, is_tracked

NOWHERE = -1
"""The index of an entry that comes from no parameter."""

_REARRANGEMENTS = {
    getattr(place, name)
    for name in (
        *("permute", "transpose", "t", "movedim", "unsqueeze", "squeeze", "reshape", "flatten"),
        *("unflatten", "chunk", "split", "unbind", "narrow", "select", "index_select", "flip"),
        *("roll", "tile", "broadcast_to"),
    )
    for place in (torch, Tensor)
}
_REARRANGEMENTS |= {
    getattr(Tensor, name)
    for name in ("view", "expand", "expand_as", "repeat", "view_as", "unfold", "__getitem__")
}
_REARRANGEMENTS |= {getattr(Tensor, name).__get__ for name in ("T", "mT")}

# copies and casts: every entry stays in its place
_COPIES = {
    getattr(Tensor, name)
    for name in ("to", "type_as", "contiguous", "clone", "float", "double", "half", "bfloat16")
} | {torch.clone}

_Indices = Callable[[], Tensor | None]
"""Indices are computed where they are asked for: most rearranged parameters have rules."""

_Versioned = dict[int, tuple[Tensor, int, _Indices]]
"""By id: a tensor, its version and its indices. The tensor is held so that no other gets its id;
the version tells whether it was changed in place since, so that its indices are no longer true."""


class IndexMap:
    """Remembers the indices of tensors that are computed from one parameter alone."""

    def __init__(self) -> None:
        self._rows: _Versioned = {}
        self._entries: _Versioned = {}

    def record_rows(self, u: Tensor, rows: Tensor) -> None:
        """Remembers which rows of a table a tensor is.

        Args:
            u: The rows (…, b).
            rows: Their indices (…).
        """
        self._rows[id(u)] = (u, u._version, lambda: rows)

    def record(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Remembers the indices of a function's result, if the function only rearranges entries.

        Args:
            func: A function of torch.
            args: Its arguments.
            kwargs: Its keyword arguments.
            result: Its result.
        """
        if func not in _REARRANGEMENTS and func not in _COPIES and func is not torch.where:
            return
        tracked = [value for value in flatten([args, kwargs]) if is_tracked(value)]
        if len(tracked) != 1 or not self._known(tracked[0]):
            return
        if func is torch.where and (len(args) != 3 or is_tracked(args[0])):
            return
        version = tracked[0]._version

        @cache
        def rearranged() -> list[Any] | None:
            entries = self.entries(tracked[0]) if tracked[0]._version == version else None
            if entries is None:
                return None
            if func is torch.where:
                # what the mask takes from elsewhere has no entry in the parameter
                chosen = (entries if is_tracked(value) else NOWHERE for value in args[1:])
                return [torch.where(args[0], *chosen)]
            if func in _COPIES:
                return [entries]
            indices = (entries if value is tracked[0] else value for value in args)
            return list(flatten(func(*indices, **kwargs)))

        for place, u in enumerate(flatten(result)):
            if u is tracked[0]:  # nothing was to be done
                continue
            self._entries[id(u)] = (u, u._version, partial(_item, rearranged, place))

    def _known(self, u: Tensor) -> bool:
        known = (self._rows.get(id(u)), self._entries.get(id(u)))
        return type(u) is TrackedParameter or any(one and one[1] == u._version for one in known)

    def rows(self, u: Tensor) -> Tensor | None:
        """Gives the rows of a table that a tensor is.

        Args:
            u: A tensor.

        Returns:
            Their indices (…), if u consists of rows and was not changed since; None otherwise.
        """
        return _unchanged(self._rows, u)

    def entries(self, u: Tensor) -> Tensor | None:
        """Gives the entries of a parameter that a tensor is.

        Args:
            u: A tensor.

        Returns:
            Their indices, of u's shape, ``NOWHERE`` for others; None if u is not known to
            consist of entries, or was changed since.
        """
        if type(u) is TrackedParameter:
            return torch.arange(u.numel(), device=u.device).view(u.shape)
        rows = self.rows(u)
        if rows is not None:
            b = u.shape[-1]
            return rows[..., None] * b + torch.arange(b, device=u.device)
        return _unchanged(self._entries, u)


def _unchanged(known: _Versioned, u: Tensor) -> Tensor | None:
    _, version, indices = known.get(id(u), (u, None, None))
    return indices() if indices is not None and version == u._version else None


def _item(items: Callable[[], list[Any] | None], place: int) -> Tensor | None:
    found = items()
    return None if found is None else found[place]
