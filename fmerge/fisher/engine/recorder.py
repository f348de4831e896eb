"""One forward pass in which the uses of parameters are recorded, and backward passes over it.

A covered layer's weights do not require grad while the layer runs and do require it elsewhere.
So a use that no rule saw leaves an edge in the graph, where it is found: see `Recorder.unseen`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from fmerge.fisher.engine.gradients import Term
from fmerge.fisher.engine.parameter_uses import Finish, Layer, Layout, Source, Use, graph_leaves
from fmerge.fisher.engine.tracer import Tracer
from fmerge.fisher.engine.tracked_tensor import hide, show

_CAST = (torch.float32, torch.bfloat16, torch.float16)  # not float64


@final
class Recorder:
    """Records the uses of parameters while it is active.

    Args:
        layers: The covered layers.
        names: Names of the trainable parameters.
        n: Number of examples.
        layouts: What is known of uses and sources by key; "blocks" is supposed otherwise.

    Attributes:
        uses: Calls of covered layers.
        sources: Where tensors without a batch dimension met the batch.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        names: Mapping[nn.Parameter, str],
        n: int,
        layouts: Mapping[str, Layout],
    ) -> None:
        self._layers = layers
        self.names = names
        self.n = n
        self._tracing = Tracer(names, n, layouts)
        self.uses = self._tracing.uses
        self.sources = self._tracing.sources
        self._recording = False

    @contextmanager
    def record(self) -> Iterator[None]:
        """Replaces the layers' forward functions for one forward pass and its backward passes.

        Yields:
            Nothing. The layers have their own again whatever happens.
        """
        with ExitStack() as stack:
            for layer in self._layers:
                # cheaper than hooks, and the user's own see the same as ever
                vars(layer.module)["forward"] = self._recorded(layer)
                stack.callback(vars(layer.module).pop, "forward")
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
            with self._tracing.active():
                return log_probs(batch)
        finally:
            self._recording = False

    def _recorded(self, layer: Layer) -> Callable[..., Any]:
        """Makes the forward function of a covered layer that records its calls."""
        forward, tracing = layer.module.forward, self._tracing
        parameters = list(layer.parameters.values())

        def recorded(*args: Any, **kwargs: Any) -> Any:
            if not self._recording:
                raise RuntimeError(
                    f"layer '{layer.name}' ran again in the backward pass: gradient checkpointing "
                    f"is not supported by the Fisher engine, turn it off for the Fisher pass"
                )
            use = None
            if len(args) == 1 and not kwargs and torch.is_grad_enabled():
                x = _cast(args[0]) if layer.cast else args[0]
                use = tracing.use(layer, x)
            if use is None:
                return forward(*args, **kwargs)
            hide(parameters)
            for parameter in parameters:
                parameter.requires_grad = False
            try:
                output = forward(x)
            finally:
                for parameter in parameters:
                    parameter.requires_grad = True
                show(parameters)
            tracing.register(use, output)
            return output

        return recorded

    def structure(self) -> tuple[tuple[str, str, int, int], ...]:
        """Gives what two batches must share for one check to hold for both.

        Returns:
            Key, layout, rows per example and number of dimensions of all uses and sources.
        """
        forms = [(use.key, use.layout, use.x) for use in self.uses]
        forms += [(source.key, source.layout, source.leaf) for source in self.sources]
        return tuple((key, layout, x.shape[0] // self.n, x.ndim) for key, layout, x in forms)

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
        expected = Counter(p for use in self.uses for p in use.layer.parameters.values())
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


def _cast(x: Any) -> Any:
    """Casts a layer's input as autocast would inside the layer, so that it is kept once."""
    if not isinstance(x, Tensor) or not torch.is_autocast_enabled(x.device.type):
        return x
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype) if x.dtype in _CAST and x.dtype != dtype else x
