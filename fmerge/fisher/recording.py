"""One forward pass in which the uses of parameters are recorded.

A covered layer's weights do not require grad while the layer runs and do require it elsewhere.
So a use that no rule saw leaves an edge in the graph, where it is found: see `Recording.unseen`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fmerge.fisher.rules import RULES, Rule, rules_of
from fmerge.fisher.terms import Pulled, Rows, Summed, Term

Layout = Literal["blocks", "tiles", "none"]
"""How k·n rows belong to n examples: r // k, r % n, or not at all."""

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


@dataclass
class Use:
    """One call of a covered layer.

    Attributes:
        key: Its name and how often it was called before.
        layer: The layer.
        rules: Rules by the layer's own parameter names.
        parameters: The trainable parameters by those names.
        x: Its input (r, …).
        layout: How its rows belong to examples.
        version: The input's version, to notice changes in place.
        form: The input's rows and number of dimensions.
    """

    key: str
    layer: Any
    rules: Mapping[str, Rule]
    parameters: dict[str, nn.Parameter]
    x: Tensor
    layout: Layout
    version: int = field(init=False)
    form: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.x._version
        self.form = (len(self.x), self.x.ndim)

    def terms(self, g: Tensor, n: int) -> Iterator[tuple[nn.Parameter, Term]]:
        """Applies the rules.

        Args:
            g: Gradient of the layer's output (r, …).
            n: Number of examples.

        Yields:
            Each parameter and its gradients through this use.
        """
        x, g = (by_example(rows, n, self.layout) for rows in (self.x, g))
        for role, parameter in self.parameters.items():
            yield parameter, self.rules[role](self.layer, x, g, n)

    def check_unchanged(self) -> None:
        """Compares the input's version.

        Raises:
            RuntimeError: If the input was changed in place after the layer read it.
        """
        if self.x._version != self.version:
            raise RuntimeError(
                f"the input of '{self.key}' was changed in place after the layer read it: its "
                f"gradients cannot be formed"
            )


@dataclass
class Source:
    """A tensor computed from parameters alone, at the place where it meets the batch.

    Attributes:
        key: Its number in the forward pass.
        tensor: u, with the graph down to its parameters.
        leaf: u repeated for every row (r, …), cut off from that graph.
        layout: How the rows belong to examples.
        parameters: Those that u is computed from.
        ids: Rows of the one table that u was read from, if it was read from one.
        version: Version of u, to notice changes in place.
    """

    key: str
    tensor: Tensor
    leaf: Tensor
    layout: Layout
    parameters: list[nn.Parameter]
    ids: Tensor | None = None
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.tensor._version

    def terms(self, g: Tensor, n: int) -> Iterator[tuple[nn.Parameter, Term]]:
        """Sums the gradient over each example's rows and over what u was broadcast to.

        Args:
            g: Gradient of the leaf (r, …).
            n: Number of examples.

        Yields:
            Each parameter and its gradients through this source.

        Raises:
            RuntimeError: If u was changed in place after it met the batch.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor computed from parameters was changed in place after its use "
                f"('{self.key}'): its gradients cannot be formed"
            )
        rows = by_example(g, n, self.layout).reshape(n, -1, *g.shape[1:]).sum(1)
        inner = _inner_shape(self.tensor, g.ndim)
        values = rows.sum_to_size(n, *[1] * (g.ndim - 1 - len(inner)), *inner)
        values = values.reshape(n, *self.tensor.shape)
        for parameter in self.parameters:
            if self.ids is not None:
                ids = self.ids.reshape(1, -1).expand(n, -1)
                yield parameter, Rows(ids, values.reshape(n, ids.shape[1], -1))
            elif parameter is self.tensor:
                yield parameter, Summed(values)
            else:
                yield parameter, Pulled(self.tensor, values, parameter)


Receiver = Callable[[Use, Tensor], None]
"""What is called with a use and its output gradient, in a backward pass."""

Finish = Callable[[nn.Parameter, list[Term]], None]
"""What is called with a parameter and its gradients through all its uses."""


def by_example(rows: Tensor, n: int, layout: Layout) -> Tensor:
    """Sorts rows by example.

    Args:
        rows: (k·n, …).
        n: Number of examples.
        layout: The order they are in.

    Returns:
        The same rows, those of each example together.
    """
    if layout == "tiles" and len(rows) != n:
        return rows.reshape(-1, n, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)
    return rows


class Recording(TorchFunctionMode):
    """Records the uses of parameters while it is active.

    Args:
        module: The module whose layers are hooked.
        names: Names of the trainable parameters.
        n: Number of examples.
        layouts: What is known of uses and sources by key; "blocks" is supposed otherwise.

    Attributes:
        uses: Calls of covered layers.
        sources: Where tensors without a batch dimension met the batch.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Mapping[nn.Parameter, str],
        n: int,
        layouts: Mapping[str, Layout],
    ) -> None:
        super().__init__()
        self.module = module
        self.names = names
        self.n = n
        self.layouts = layouts
        self.uses: list[Use] = []
        self.sources: list[Source] = []
        self._receiver: Receiver | None = None
        self._trainable = {id(parameter) for parameter in names}
        self._unbatched: dict[int, Tensor] = {}
        self._leaves: dict[tuple[int, int, tuple[int, ...]], Tensor | None] = {}
        self._ids: dict[int, tuple[Tensor | None, int]] = {}
        self._calls: dict[str, int] = {}
        self._running: dict[nn.Module, Use | None] = {}
        self._recording = False

    @contextmanager
    def record(self) -> Iterator[None]:
        """Hooks the layers for one forward pass and the backward passes after it.

        Yields:
            Nothing. The hooks are removed whatever happens.
        """
        with ExitStack() as stack:
            for name, layer in self.module.named_modules():
                rules = rules_of(layer) if type(layer) in RULES else {}
                own = {
                    role: parameter
                    for role, parameter in layer.named_parameters(recurse=False)
                    if parameter in self.names and parameter.requires_grad
                }
                if rules and own:
                    before, after = self._hooks(name, rules, own)
                    for handle in (
                        layer.register_forward_pre_hook(before, with_kwargs=True),
                        layer.register_forward_hook(
                            after, with_kwargs=True, prepend=True, always_call=True
                        ),
                    ):
                        stack.callback(handle.remove)
            yield

    def forward(self, log_probs: Callable[[Any], Tensor], batch: Any) -> Tensor:
        """Runs the forward pass.

        Args:
            log_probs: From a batch to ℓ.
            batch: The batch.

        Returns:
            ℓ (n, c).
        """
        # a cast that autocast kept from an earlier pass would be an unseen use
        torch.clear_autocast_cache()
        self._recording = True
        try:
            with self:
                return log_probs(batch)
        finally:
            self._recording = False

    def _hooks(
        self, name: str, rules: Mapping[str, Rule], own: dict[str, nn.Parameter]
    ) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._recording:
                raise RuntimeError(
                    f"layer '{name}' ran again in the backward pass: gradient checkpointing is "
                    f"not supported by the Fisher engine, turn it off for the Fisher pass"
                )
            x = args[0] if len(args) == 1 and not kwargs else None
            use = self._use(name, layer, rules, own, x) if torch.is_grad_enabled() else None
            self._running[layer] = use
            for parameter in own.values() if use else ():
                parameter.requires_grad_(False)

        def after(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            use = self._running.pop(layer, None)
            if use is not None:
                for parameter in own.values():
                    parameter.requires_grad_(True)
                if output is not None:  # None after an exception
                    self._register(use, output)

        return before, after

    def _use(
        self,
        name: str,
        layer: Any,
        rules: Mapping[str, Rule],
        own: dict[str, nn.Parameter],
        x: Any,
    ) -> Use | None:
        """Gives the use of a call whose input has rows of the batch, None for any other."""
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0 or len(x) % self.n:
            return None
        if isinstance(layer, nn.Linear | nn.LayerNorm) and x.ndim < 2:
            return None
        if isinstance(layer, nn.Conv2d) and x.ndim != 4:
            return None
        key = self._key(name)
        layout = self.layouts.get(key, "blocks")
        return Use(key, layer, rules, own, x.detach(), layout) if layout != "none" else None

    def _key(self, name: str) -> str:
        self._calls[name] = self._calls.get(name, 0) + 1
        return f"{name}#{self._calls[name]}"

    def _register(self, use: Use, output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()  # the graph starts here
        self._unbatched.pop(id(output), None)
        self.uses.append(use)

        def receive(g: Tensor | None) -> None:
            if g is not None and self._receiver is not None:
                use.check_unchanged()
                self._receiver(use, g.detach())

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
        if func is F.embedding and args[1] is own[0]:
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
            use = self._use(name, layer, RULES[nn.Embedding], {"weight": table}, ids)
        if use is None:
            result = func(*args, **kwargs)
            self._unbatched[id(result)] = result
            if given.get("padding_idx") is None:
                self._ids[id(result)] = (ids, result._version)
            return result
        output: Tensor = func(ids, table.detach(), *args[2:], **kwargs)
        self._register(use, output)
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
        inner = _inner_shape(u, ndim)
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

    def structure(self) -> tuple[tuple[str, str, int, int], ...]:
        """Gives what two batches must share for one check to hold for both.

        Returns:
            Key, layout, rows per example and number of dimensions of all uses and sources.
        """
        forms = [(use.key, use.layout, *use.form) for use in self.uses]
        forms += [(s.key, s.layout, len(s.leaf), s.leaf.ndim) for s in self.sources]
        return tuple((key, layout, rows // self.n, ndim) for key, layout, rows, ndim in forms)

    def unseen(self, log_likelihoods: Tensor) -> tuple[list[nn.Parameter], list[Tensor]]:
        """Walks the graph of ℓ.

        Args:
            log_likelihoods: ℓ (n, c).

        Returns:
            The parameters with a use that was not recorded, and all leaves of the graph.
        """
        leaves = graph_leaves([log_likelihoods])
        unseen = [v for v in leaves if v in self.names]
        return unseen, leaves  # type: ignore[return-value]

    def backward(
        self,
        log_likelihoods: Tensor,
        leaves: list[Tensor],
        seed: Tensor,
        finish: Finish,
        keep: bool,
        watch: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        """Runs one backward pass over the recorded forward pass.

        Args:
            log_likelihoods: ℓ (n, c).
            leaves: All leaves of its graph.
            seed: Gradient of ℓ (n, c).
            finish: Called with each parameter once its uses have all been met.
            keep: Whether another backward pass follows.
            watch: Called with the key and the gradient (r, …) of every use and source.
        """
        if not leaves:
            return
        expected = Counter(p for use in self.uses for p in use.parameters.values())
        expected.update(p for source in self.sources for p in source.parameters)
        pending: dict[nn.Parameter, list[Term]] = {}

        def collect(site: Use | Source, g: Tensor) -> None:
            if watch is not None:
                watch(site.key, g)
            for parameter, term in site.terms(g, self.n):
                pending.setdefault(parameter, []).append(term)
                if len(pending[parameter]) == expected[parameter]:
                    finish(parameter, pending.pop(parameter))

        def receive(use: Use, g: Tensor) -> None:
            collect(use, g)
            if not keep:
                use.x = use.x.new_empty(0)  # not needed any more

        self._receiver = receive
        gradients = torch.autograd.grad(
            log_likelihoods, leaves, seed, retain_graph=keep, allow_unused=True
        )
        self._receiver = None
        by_leaf = {id(leaf): g for leaf, g in zip(leaves, gradients, strict=True)}
        for source in self.sources:
            g = by_leaf.get(id(source.leaf))
            if g is not None:
                collect(source, g)
        for parameter, terms in pending.items():
            finish(parameter, terms)  # another use of it had no part in this ℓ


def graph_leaves(tensors: list[Tensor]) -> list[Tensor]:
    """Finds the leaves that a graph ends in.

    Args:
        tensors: Tensors with a graph, or leaves.

    Returns:
        Every leaf once.

    Raises:
        RuntimeError: If a part of the graph is hidden by reentrant checkpointing.
    """
    leaves = [t for t in tensors if t.grad_fn is None and t.requires_grad]
    stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                "gradient checkpointing is not supported by the Fisher engine (found "
                "CheckpointFunction in the graph), turn it off for the Fisher pass"
            )
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return leaves


def _inner_shape(u: Tensor, ndim: int) -> tuple[int, ...]:
    """The shape of u without the dimension, of size one, that stands where the rows come."""
    return tuple(u.shape if u.ndim < ndim else u.shape[1:])


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
