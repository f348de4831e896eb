"""Follows tensors that are computed from parameters alone during a forward pass.

Such a tensor (a position embedding, a bias of attention scores, a class token) has no row per
example, and autograd sums its gradient over the batch. Where it meets the batch it is repeated for
every row, which changes no value, and keeps the examples' gradients apart.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmerge.fisher.engine.index_map import Origins
from fmerge.fisher.engine.parameter_uses import (
    Layer,
    Layout,
    Receiver,
    Source,
    Use,
    graph_leaves,
    inner_shape,
)
from fmerge.fisher.engine.rules import RULES
from fmerge.fisher.engine.tracked_tensor import Unbatched, flat, following, is_unbatched

_BROADCASTS = (
    {torch.where, torch.Tensor.where}
    | {
        function
        for name in ("add", "sub", "mul", "div", "true_divide")
        for function in (
            getattr(torch, name),
            getattr(torch.Tensor, name),
            getattr(torch.Tensor, f"{name}_"),
        )
    }
    | {
        getattr(torch.Tensor, f"__{prefix}{name}__")
        for name in ("add", "sub", "mul", "truediv")
        for prefix in ("", "r", "i")
    }
)


@dataclass(frozen=True)
class Lookup:
    """The layer of a bare ``F.embedding``."""

    padding_idx: int | None


class Tracer:
    """Follows tensors while it is active, and keeps the uses of parameters.

    Args:
        names: Names of the trainable parameters.
        n: Number of examples.
        layouts: What is known of uses and sources by key; "blocks" is supposed otherwise.

    Attributes:
        uses: Calls of covered layers.
        sources: Where tensors without a batch dimension met the batch.
        receiver: Called with each use's output gradient in a backward pass.
    """

    def __init__(
        self, names: Mapping[nn.Parameter, str], n: int, layouts: Mapping[str, Layout]
    ) -> None:
        self.names = names
        self.n = n
        self.layouts = layouts
        self.uses: list[Use] = []
        self.sources: list[Source] = []
        self.receiver: Receiver | None = None
        # each holds the tensor whose id is in its key, so that no other gets that id
        self._leaves: dict[tuple[int, int, tuple[int, ...]], tuple[Tensor, Tensor | None]] = {}
        self._origins = Origins()
        self._calls: dict[str, int] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Follows the parameters.

        Yields:
            Nothing.
        """
        with following(self.names, self.follow):
            yield

    def use(self, layer: Layer, x: Any) -> Use | None:
        """Makes the use of a call whose input has rows of the batch.

        Args:
            layer: The layer.
            x: Its input.

        Returns:
            The use; None for a call that the rules do not cover.
        """
        key = self._key(layer.name)
        if not isinstance(x, Tensor):
            return None
        ndim, rows = x.ndim, x.shape[0] if x.ndim else 0
        if rows == 0 or rows % self.n:
            return None
        if ndim < 2 and isinstance(layer.module, nn.Linear | nn.LayerNorm):
            return None
        if ndim != 4 and isinstance(layer.module, nn.Conv2d):
            return None
        layout = self.layouts.get(key, "blocks")
        return None if layout == "none" else Use(key, layer, x.detach(), layout, x._version)

    def _key(self, name: str) -> str:
        self._calls[name] = self._calls.get(name, 0) + 1
        return f"{name}#{self._calls[name]}"

    def register(self, use: Use, output: Tensor) -> None:
        """Keeps a use, and lets the gradient of its output be received.

        Args:
            use: The use.
            output: What the layer gave.
        """
        if not output.requires_grad:
            output.requires_grad_()  # the graph starts here
        if type(output) is Unbatched:  # as long as its rows are supposed to be examples'
            output.__class__ = Tensor  # type: ignore[assignment]
        self.uses.append(use)

        def receive(g: Tensor | None) -> None:
            if g is not None and self.receiver is not None:
                use.check_unchanged()
                self.receiver(use, g)

        output.register_hook(receive)  # type: ignore[no-untyped-call]

    def follow(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follows tensors computed from parameters alone up to where they meet the batch.

        Args:
            func: A function of torch.
            args: Its arguments.
            kwargs: Its named arguments.

        Returns:
            What it returns.
        """
        if func is F.embedding and len(args) > 1 and is_unbatched(args[1]):
            return self._embedding(func, args, kwargs)
        if func in _BROADCASTS:
            args = self._broadcast(args)
        elif func is F.scaled_dot_product_attention:
            args, kwargs = self._attention(args, kwargs)
        elif func is torch.Tensor.expand and is_unbatched(args[0]):
            repeated = self._expand(args[0], func(*args, **kwargs))
            if repeated is not None:
                return repeated
        elif func is torch.Tensor.repeat and is_unbatched(args[0]):
            repeated = self._repeat(args[0], func(*args, **kwargs))
            if repeated is not None:
                return repeated
        result = func(*args, **kwargs)
        unbatched = all(is_unbatched(t) for t in flat([args, kwargs]) if _has_graph(t))
        for leaf in flat(result):
            if type(leaf) is Tensor and unbatched and leaf.requires_grad:
                leaf.__class__ = Unbatched
            elif type(leaf) is Unbatched and not unbatched:
                leaf.__class__ = Tensor  # type: ignore[assignment]  # the batch was added in place
        if unbatched:
            self._origins.move(func, args, kwargs, result)
        return result

    def _embedding(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        names = ["input", "weight", "padding_idx", "max_norm", "norm_type"]
        names += ["scale_grad_by_freq", "sparse"]
        given = dict(zip(names, args, strict=False)) | kwargs
        ids, table = given["input"], given["weight"]
        use = None
        if table in self.names and not (
            given.get("max_norm") or given.get("scale_grad_by_freq") or given.get("sparse")
        ):
            lookup = Lookup(given.get("padding_idx"))
            name = f"F.embedding({self.names[table]})"
            layer = Layer(name, lookup, RULES[nn.Embedding], {"weight": table}, cast=False)
            use = self.use(layer, ids)
        if use is None:
            result = func(*args, **kwargs)
            result.__class__ = Unbatched
            if given.get("padding_idx") is None:
                self._origins.read(result, ids)
            return result
        output: Tensor = func(ids, table.detach(), *args[2:], **kwargs)
        self.register(use, output)
        return output

    def _broadcast(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        others = [a for a in args if isinstance(a, Tensor) and not is_unbatched(a)]
        if not others:
            return args
        ndim = max(a.ndim for a in args if isinstance(a, Tensor))
        rows = max((len(a) for a in others if a.ndim == ndim > 0), default=0)
        return tuple(self._meet(a, rows, ndim) if is_unbatched(a) else a for a in args)

    def _attention(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A bias of attention scores that all examples share."""
        query = args[0] if args else kwargs["query"]
        bias = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if bias is None or not is_unbatched(bias) or is_unbatched(query):
            return args, kwargs
        bias = self._meet(bias, len(query), query.ndim)
        if len(args) > 3:
            return (*args[:3], bias, *args[4:]), kwargs
        return args, kwargs | {"attn_mask": bias}

    def _meet(self, u: Tensor, rows: int, ndim: int) -> Tensor:
        """Gives u a row for each of the batch's, if it lacks them."""
        lacks_rows = u.ndim < ndim or (u.ndim == ndim and len(u) == 1)
        if not lacks_rows or rows < 2 or rows % self.n:
            return u
        inner = inner_shape(u, ndim)
        leaf = self._leaf(u, (rows, *[1] * (ndim - 1 - len(inner)), *inner))
        return u if leaf is None else leaf

    def _expand(self, u: Tensor, result: Tensor) -> Tensor | None:
        lacks_rows = u.ndim < result.ndim or len(u) == 1
        if result.ndim and lacks_rows and len(result) > 1 and len(result) % self.n == 0:
            return self._leaf(u, tuple(result.shape))
        return None

    def _repeat(self, u: Tensor, result: Tensor) -> Tensor | None:
        """A source of shape (h, …) repeated k·n times along its first dimension."""
        if u.ndim != result.ndim or u.shape[1:] != result.shape[1:] or len(result) % self.n:
            return None
        rows = len(result) // max(1, len(u))
        if rows % self.n:
            return None
        leaf = self._leaf(u, (rows, *u.shape))
        return None if leaf is None else leaf.flatten(0, 1)

    def _leaf(self, u: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        name = (id(u), u._version, shape)
        if name in self._leaves:
            return self._leaves[name][1]
        key = self._key("source")
        layout = self.layouts.get(key, "blocks")
        leaf = None
        if layout != "none":
            leaf = u.detach().expand(shape).requires_grad_()
            below = [v for v in graph_leaves([u]) if v in self.names]
            rows = self._origins.rows(u)
            entries = self._origins.entries(u) if rows is None else None
            self.sources.append(Source(key, u, leaf, layout, below, rows, entries))  # type: ignore[arg-type]
        self._leaves[name] = (u, leaf)
        return leaf


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
