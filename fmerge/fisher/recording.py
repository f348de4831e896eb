"""One forward pass in which the uses of parameters are recorded, and backward passes over it.

A covered layer's weights do not require grad while the layer runs and do require it elsewhere.
So a use that no rule saw leaves an edge in the graph, where it is found: see `Recording.unseen`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from fmerge.fisher.rules import RULES, Rule, rules_of
from fmerge.fisher.terms import Term
from fmerge.fisher.tracing import Tracing
from fmerge.fisher.uses import Finish, Layout, Source, Use, graph_leaves


@final
class Recording:
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
        self.module = module
        self.names = names
        self.n = n
        self._tracing = Tracing(names, n, layouts)
        self.uses = self._tracing.uses
        self.sources = self._tracing.sources
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
            with self._tracing:
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
            use = self._tracing.use(name, layer, rules, own, x) if torch.is_grad_enabled() else None
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
                    self._tracing.register(use, output)

        return before, after

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
        finish: Finish | None,
        keep: bool,
        watch: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        """Runs one backward pass over the recorded forward pass.

        Args:
            log_likelihoods: ℓ (n, c).
            leaves: All leaves of its graph.
            seed: Gradient of ℓ (n, c).
            finish: Called with each parameter once its uses have all been met; without it,
                gradients are watched alone.
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
            if finish is None:
                return
            for parameter, term in site.terms(g, self.n):
                pending.setdefault(parameter, []).append(term)
                if len(pending[parameter]) == expected[parameter]:
                    finish(parameter, pending.pop(parameter))

        def receive(use: Use, g: Tensor) -> None:
            collect(use, g)
            if not keep:
                use.x = use.x.new_empty(0)  # not needed any more

        self._tracing.receiver = receive
        # autocast would round the products to half precision, and belongs to forward passes
        with torch.autocast(log_likelihoods.device.type, enabled=False):
            gradients = torch.autograd.grad(
                log_likelihoods, leaves, seed, retain_graph=keep, allow_unused=True
            )
            self._tracing.receiver = None
            by_leaf = {id(leaf): g for leaf, g in zip(leaves, gradients, strict=True)}
            for source in self.sources:
                g = by_leaf.get(id(source.leaf))
                if g is not None:
                    collect(source, g)
            if finish is not None:
                for parameter, terms in pending.items():
                    finish(parameter, terms)  # another use of it had no part in this ℓ
