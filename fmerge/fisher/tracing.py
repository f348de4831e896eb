"""Follows tensors through the functions of torch during a forward pass.

A tensor computed from parameters alone (a position embedding, a bias of attention scores, a class
token) has no row per example, and autograd sums its gradient over the batch. Where it meets the
batch it is repeated for every row, which changes no value, and keeps the examples' gradients apart.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fmerge.fisher.rules import RULES, Rule
from fmerge.fisher.uses import Layout, Receiver, Source, Use, graph_leaves, inner_shape

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


class Tracing(TorchFunctionMode):
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
        super().__init__()
        self.names = names
        self.n = n
        self.layouts = layouts
        self.uses: list[Use] = []
        self.sources: list[Source] = []
        self.receiver: Receiver | None = None
        self._trainable = {id(parameter) for parameter in names}
        self._unbatched: dict[int, Tensor] = {}
        self._leaves: dict[tuple[int, int, tuple[int, ...]], Tensor | None] = {}
        self._ids: dict[int, tuple[Tensor | None, int]] = {}
        self._calls: dict[str, int] = {}

    def use(
        self,
        name: str,
        layer: Any,
        rules: Mapping[str, Rule],
        own: dict[str, nn.Parameter],
        x: Any,
    ) -> Use | None:
        """Makes the use of a call whose input has rows of the batch.

        Args:
            name: The layer's name.
            layer: The layer.
            rules: Rules by the layer's own parameter names.
            own: Its trainable parameters by those names.
            x: Its input.

        Returns:
            The use; None for a call that the rules do not cover.
        """
        key = self._key(name)
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0 or len(x) % self.n:
            return None
        if isinstance(layer, nn.Linear | nn.LayerNorm) and x.ndim < 2:
            return None
        if isinstance(layer, nn.Conv2d) and x.ndim != 4:
            return None
        layout = self.layouts.get(key, "blocks")
        return Use(key, layer, rules, own, x.detach(), layout) if layout != "none" else None

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
        self._unbatched.pop(id(output), None)
        self.uses.append(use)

        def receive(g: Tensor | None) -> None:
            if g is not None and self.receiver is not None:
                use.check_unchanged()
                self.receiver(use, g.detach())

        output.register_hook(receive)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Follows tensors computed from parameters alone up to where they meet the batch.

        Args:
            func: A function of torch.
            types: Not used.
            args: Its arguments.
            kwargs: Its named arguments.

        Returns:
            What it returns.
        """
        kwargs = kwargs or {}
        tensors = [leaf for leaf in _flat([args, kwargs]) if isinstance(leaf, Tensor)]
        own = [tensor for tensor in tensors if self._is_unbatched(tensor)]
        if not own or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func is F.embedding and len(args) > 1 and args[1] is own[0]:
            return self._embedding(func, args, kwargs)
        if func in _BROADCASTS:
            args = self._broadcast(args)
        elif func is F.scaled_dot_product_attention:
            args, kwargs = self._attention(args, kwargs)
        elif func is torch.Tensor.expand and args[0] is own[0]:
            repeated = self._expand(args[0], func(*args, **kwargs))
            if repeated is not None:
                return repeated
        elif func is torch.Tensor.repeat and args[0] is own[0]:
            repeated = self._repeat(args[0], func(*args, **kwargs))
            if repeated is not None:
                return repeated
        result = func(*args, **kwargs)
        unbatched = all(self._is_unbatched(t) for t in _flat([args, kwargs]) if _has_graph(t))
        for leaf in _flat(result):
            if unbatched and _has_graph(leaf):
                self._unbatched[id(leaf)] = leaf
            elif isinstance(leaf, Tensor):
                self._unbatched.pop(id(leaf), None)  # the batch was added to it in place
        return result

    def _is_unbatched(self, tensor: Any) -> bool:
        if id(tensor) in self._unbatched:
            return True
        return id(tensor) in self._trainable and bool(tensor.requires_grad)

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
            layer = Lookup(given.get("padding_idx"))
            name = f"F.embedding({self.names[table]})"
            use = self.use(name, layer, RULES[nn.Embedding], {"weight": table}, ids)
        if use is None:
            result = func(*args, **kwargs)
            self._unbatched[id(result)] = result
            if given.get("padding_idx") is None:
                self._ids[id(result)] = (ids, result._version)
            return result
        output: Tensor = func(ids, table.detach(), *args[2:], **kwargs)
        self.register(use, output)
        return output

    def _broadcast(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        others = [a for a in args if isinstance(a, Tensor) and not self._is_unbatched(a)]
        if not others:
            return args
        ndim = max(a.ndim for a in args if isinstance(a, Tensor))
        rows = max((len(a) for a in others if a.ndim == ndim > 0), default=0)
        return tuple(self._meet(a, rows, ndim) if self._is_unbatched(a) else a for a in args)

    def _attention(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A bias of attention scores that all examples share."""
        query = args[0] if args else kwargs["query"]
        bias = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if bias is None or not self._is_unbatched(bias) or self._is_unbatched(query):
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
            return self._leaves[name]
        self._unbatched[id(u)] = u  # keeps it alive, so that its id stays its own
        key = self._key("source")
        layout = self.layouts.get(key, "blocks")
        leaf = None
        if layout != "none":
            leaf = u.detach().expand(shape).requires_grad_()
            below = [v for v in graph_leaves([u]) if v in self.names]
            ids, version = self._ids.get(id(u), (None, u._version))
            ids = ids if version == u._version else None
            self.sources.append(Source(key, u, leaf, layout, below, ids))  # type: ignore[arg-type]
        self._leaves[name] = leaf
        return leaf


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value
