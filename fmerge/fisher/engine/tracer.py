"""Traces a forward pass: calls of covered layers, and batch-independent tensors.

A batch-independent tensor (a position embedding, a bias of attention scores, a class token) has no
row per example, so autograd sums its gradient over the batch. Where it meets the batch the tracer
repeats it for every row. That changes no value, and gives each example a gradient of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmerge.fisher.engine.functions import COMPOSED, FUNCTIONS, opened
from fmerge.fisher.engine.index_map import IndexMap
from fmerge.fisher.engine.parameter_uses import (
    FunctionUse,
    Layer,
    LayerUse,
    Receiver,
    TensorUse,
    graph_leaves,
    inner_shape,
)
from fmerge.fisher.engine.row_order import RowOrder
from fmerge.fisher.engine.tracked_tensor import TrackedTensor, flatten, is_tracked, tracking

# elementwise functions that broadcast a batch-independent argument over the batch's rows
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


class Tracer:
    """Records the uses of parameters in a forward pass.

    Args:
        names: Names of the trainable parameters.
        n: Number of examples.
        row_orders: What is known of uses by key; example-major order is assumed of the others.

    Attributes:
        layer_uses: Calls of covered layers.
        tensor_uses: Where batch-independent tensors met the batch.
        receiver: Called with each layer's use and output gradient in a backward pass.
    """

    def __init__(
        self, names: Mapping[nn.Parameter, str], n: int, row_orders: Mapping[str, RowOrder]
    ) -> None:
        self.names = names
        self.n = n
        self.row_orders = row_orders
        self.layer_uses: list[LayerUse] = []
        self.tensor_uses: list[TensorUse] = []
        self.receiver: Receiver | None = None
        # each holds the tensor whose id is in its key, so that no other gets that id
        self._leaves: dict[tuple[int, int, tuple[int, ...]], tuple[Tensor, Tensor | None]] = {}
        self._index_map = IndexMap()
        self._calls: dict[str, int] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Tracks the parameters.

        Yields:
            Nothing.
        """
        with tracking(self.names, self.call):
            yield

    def use(self, layer: Layer, x: Any) -> LayerUse | None:
        """Describes a call of a covered layer whose input has rows of the batch.

        Args:
            layer: The layer.
            x: Its input.

        Returns:
            The use; None for a call that the rule does not cover.
        """
        # counted even if not covered: a layer's k-th call has the same key in every pass
        key = self.key(layer.name)
        if not isinstance(x, Tensor) or not layer.rule.covers(x):
            return None
        if len(x) == 0 or len(x) % self.n:
            return None
        order = self.row_orders.get(key, "example-major")
        return None if order == "none" else LayerUse(key, layer, x.detach(), order, x._version)

    def key(self, name: str) -> str:
        """Names a use.

        Args:
            name: Of the layer, or of what else is used.

        Returns:
            The name and how often it was used before: the same in every pass.
        """
        self._calls[name] = self._calls.get(name, 0) + 1
        return f"{name}#{self._calls[name]}"

    def register(self, use: LayerUse, output: Tensor) -> Tensor:
        """Keeps a use, and lets the receiver have the gradient of its output.

        Args:
            use: The use.
            output: The layer's output.

        Returns:
            What the model receives: the output, or a copy where the graph starts at it, as a
            model may change it in place (CTRL scales its embeddings so), which no leaf allows.
        """
        starts = not output.requires_grad
        if starts:
            output.requires_grad_()  # the graph starts here: neither input nor weight needs one
        if type(output) is TrackedTensor:
            # computed from parameters alone, but its rows are assumed to belong to examples
            output.__class__ = Tensor  # type: ignore[assignment]
        self.layer_uses.append(use)

        def receive(g: Tensor | None) -> None:
            if g is not None and self.receiver is not None:
                use.check_unchanged()
                self.receiver(use, g)

        output.register_hook(receive)  # type: ignore[no-untyped-call]
        return output.clone() if starts else output

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a torch function that has a batch-independent argument.

        The result is batch-independent if all arguments with a graph are. Where such a tensor
        meets the batch, rows are repeated first. Functions that are not known here see the tensor
        as it is: the edge that this leaves in the graph is found by ``Recorder.unseen``.

        Args:
            func: The function.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            Its result.
        """
        if func in COMPOSED:
            with torch._C._EnableTorchFunction():
                return opened(func)(*args, **kwargs)
        if (found := self._function(func, args, kwargs)) is not None:
            return found
        if func in _BROADCASTS:
            args = self._broadcast(args)
        elif func is F.scaled_dot_product_attention:
            args, kwargs = self._attention(args, kwargs)
        elif func is torch.Tensor.expand and is_tracked(args[0]):
            repeated = self._expand(args[0], func(*args, **kwargs))
            if repeated is not None:
                return repeated
        elif func is torch.Tensor.repeat and is_tracked(args[0]):
            repeated = self._repeat(args[0], func(*args, **kwargs))
            if repeated is not None:
                return repeated
        result = func(*args, **kwargs)
        independent = all(is_tracked(t) for t in flatten([args, kwargs]) if _has_graph(t))
        for tensor in flatten(result):
            if type(tensor) is Tensor and independent and tensor.requires_grad:
                tensor.__class__ = TrackedTensor
            elif type(tensor) is TrackedTensor and not independent:
                tensor.__class__ = Tensor  # type: ignore[assignment]  # the batch was added in place
        if independent and func is F.embedding:
            self._record_rows(FUNCTIONS[func][0].arguments(args, kwargs), result)
        elif independent:
            self._index_map.record(func, args, kwargs, result)
        return result

    def _function(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Runs a layer's function by the layer's rule; None where that does not cover the call."""
        for function in FUNCTIONS.get(func, ()):
            given, rule = function.arguments(args, kwargs), function.found_rule()
            chosen = {
                own: given[name]
                for own, name in function.parameters.items()
                if is_tracked(given.get(name))
            }
            x = given.get(function.x)
            if rule is None or not chosen or is_tracked(x):
                continue
            if (options := function.options(given)) is None:
                continue
            origins = {own: self._origins(u) for own, u in chosen.items()}
            names = [self.names[v] for below in origins.values() for v in below]
            layer = Layer(f"{func.__name__}({', '.join(names)})", options, rule, chosen)
            x = rule.cast(x)
            shape, use = x.shape, self.use(layer, x)
            if use is None and function.tokenwise and x.ndim > 2 and shape[1] == self.n:
                # examples may lie along the second dimension: as rows their tokens are interleaved
                x = x.flatten(0, 1)
                use = self.use(replace(layer, name=f"{layer.name} by token"), x)
            if use is None:
                continue
            use = FunctionUse(use.key, layer, use.x, use.row_order, use.version, origins)
            output = func(*function.positional(args, x), **function.named(kwargs, x))
            output = self.register(use, output)
            return output if x.shape == shape else output.view(*shape[:2], -1)
        return None

    def _record_rows(self, given: Mapping[str, Any], result: Tensor) -> None:
        """Rows of a table that no example owns, such as those of positions."""
        if given["weight"] in self.names and given.get("padding_idx") is None:
            self._index_map.record_rows(result, given["input"])

    def _origins(self, u: Tensor) -> list[Any]:
        return [v for v in graph_leaves([u]) if v in self.names]

    def _broadcast(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        others = [a for a in args if isinstance(a, Tensor) and not is_tracked(a)]
        if not others:
            return args
        ndim = max(a.ndim for a in args if isinstance(a, Tensor))
        rows = max((len(a) for a in others if a.ndim == ndim > 0), default=0)
        return tuple(self._per_row(a, rows, ndim) if is_tracked(a) else a for a in args)

    def _attention(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A bias of attention scores that all examples share."""
        query = args[0] if args else kwargs["query"]
        bias = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if bias is None or not is_tracked(bias) or is_tracked(query):
            return args, kwargs
        bias = self._per_row(bias, len(query), query.ndim)
        if len(args) > 3:
            return (*args[:3], bias, *args[4:]), kwargs
        return args, kwargs | {"attn_mask": bias}

    def _per_row(self, u: Tensor, rows: int, ndim: int) -> Tensor:
        """Repeats u for each row of the batch, if it lacks rows; otherwise returns it as it is."""
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
        """A tensor of shape (h, …) that is repeated k·n times along its first dimension."""
        if u.ndim != result.ndim or u.shape[1:] != result.shape[1:] or len(result) % self.n:
            return None
        rows = len(result) // max(1, len(u))
        if rows % self.n:
            return None
        leaf = self._leaf(u, (rows, *u.shape))
        return None if leaf is None else leaf.flatten(0, 1)

    def _leaf(self, u: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Makes u a leaf with the batch's rows; None where those are known to be no examples'."""
        # one leaf for all uses of the same shape: layers often share a mask or a bias
        name = (id(u), u._version, shape)
        if name in self._leaves:
            return self._leaves[name][1]
        key = self.key("source")
        order = self.row_orders.get(key, "example-major")
        leaf = None
        if order != "none":
            # detached, since autograd would sum over rows below; u's own graph is walked later
            leaf = u.detach().expand(shape).requires_grad_()
            use = TensorUse(key, u, leaf, order, self._origins(u))
            use.rows = self._index_map.rows(u)
            use.entries = self._index_map.entries(u) if use.rows is None else None
            self.tensor_uses.append(use)
        self._leaves[name] = (u, leaf)
        return leaf


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
