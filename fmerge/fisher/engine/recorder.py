"""One forward pass in which the uses of parameters are recorded, and backward passes over it.

A covered layer's parameters do not require grad while the layer runs, and do everywhere else. That
saves autograd the weight gradients, and it makes every other use visible: a use that no rule saw
leaves an edge to the parameter in the graph, which `Recorder.unseen` finds.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from fmerge.fisher.engine.gradients import Gradients
from fmerge.fisher.engine.parameter_uses import Finish, Layer, LayerUse, ParameterUse, graph_leaves
from fmerge.fisher.engine.routing import routed
from fmerge.fisher.engine.row_order import RowOrder
from fmerge.fisher.engine.rules import FUSED_EXPERTS
from fmerge.fisher.engine.tracer import Tracer
from fmerge.fisher.engine.tracked_tensor import track, untrack

Observe = Callable[[str, Tensor], None]
"""Called with the key of a use and its gradient (r, …)."""


@final
class Recorder:
    """Records the uses of parameters while it is active.

    Args:
        layers: The covered layers.
        names: Names of the trainable parameters.
        n: Number of examples.
        row_orders: What is known of uses by key; example-major order is assumed of the others.

    Attributes:
        layer_uses: Calls of covered layers.
        tensor_uses: Where batch-independent tensors met the batch.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        names: Mapping[nn.Parameter, str],
        n: int,
        row_orders: Mapping[str, RowOrder],
    ) -> None:
        self._layers = layers
        self.names = names
        self.n = n
        self._tracer = Tracer(names, n, row_orders)
        self.layer_uses = self._tracer.layer_uses
        self.tensor_uses = self._tracer.tensor_uses
        self._recording = False

    @contextmanager
    def record(self) -> Iterator[None]:
        """Replaces the layers' forward functions for one forward pass and its backward passes.

        Yields:
            Nothing. Afterwards the layers have their own again, whatever happens.
        """
        with ExitStack() as stack:
            for layer in self._layers:
                # an attribute of the instance is cheaper than hooks, inside which it runs: the
                # user's own hooks see the layer as ever
                vars(layer.module)["forward"] = self._forward_of(layer)
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
        # a weight that autocast cast in an earlier pass has an edge to it: an unseen use
        torch.clear_autocast_cache()
        self._recording = True
        try:
            with self._tracer.active():
                return log_probs(batch)
        finally:
            self._recording = False

    def _forward_of(self, layer: Layer) -> Callable[..., Any]:
        if layer.rule is FUSED_EXPERTS:
            recorded = routed(layer, self._tracer)
        else:
            recorded = self._recorded(layer)

        def once(*args: Any, **kwargs: Any) -> Any:
            if not self._recording:
                raise RuntimeError(
                    f"layer '{layer.name}' ran again in the backward pass: gradient checkpointing "
                    f"is not supported by the Fisher engine, turn it off for the Fisher pass"
                )
            return recorded(*args, **kwargs)

        return once

    def _recorded(self, layer: Layer) -> Callable[..., Any]:
        """Makes the forward function of a covered layer that records its calls."""
        forward, tracer = layer.module.forward, self._tracer
        parameters = list(layer.parameters.values())

        def recorded(*args: Any, **kwargs: Any) -> Any:
            use = None
            if len(args) == 1 and not kwargs and torch.is_grad_enabled():
                x = layer.rule.cast(args[0])
                use = tracer.use(layer, x)
            if use is None:
                # the parameters require grad: autograd sees this call, and `unseen` finds it
                return forward(*args, **kwargs)
            untrack(parameters)
            for parameter in parameters:
                parameter.requires_grad = False
            try:
                output = forward(x)
            finally:
                for parameter in parameters:
                    parameter.requires_grad = True
                track(parameters)
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"layer '{layer.name}' returned {type(output).__name__}; a layer that has a "
                    f"rule must return one tensor"
                )
            return tracer.register(use, output)

        return recorded

    def structure(self) -> tuple[tuple[str, str, int, int], ...]:
        """Gives what two batches must share for one check to hold for both.

        Returns:
            Key, row order, rows per example and number of dimensions of all uses.
        """
        forms = [(use.key, use.row_order, use.x) for use in self.layer_uses]
        forms += [(use.key, use.row_order, use.leaf) for use in self.tensor_uses]
        return tuple((key, order, x.shape[0] // self.n, x.ndim) for key, order, x in forms)

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
        *,
        retain_graph: bool,
        finish: Finish | None = None,
        observe: Observe | None = None,
    ) -> None:
        """Runs one backward pass over the recorded forward pass.

        Args:
            log_likelihoods: ℓ (n, c).
            leaves: All leaves of its graph.
            seed: Gradient of ℓ (n, c).
            retain_graph: Whether another backward pass follows.
            finish: Called with each parameter once its uses have all been met; without it,
                gradients are only observed.
            observe: Called with the key and the gradient (r, …) of every use.
        """
        if not leaves:
            return
        collector = _Collector(self, finish, observe)

        def receive(use: LayerUse, g: Tensor) -> None:
            collector.add(use, g)
            if not retain_graph:
                use.x = use.x.new_empty(0)  # frees the input while the pass goes on

        self._tracer.receiver = receive
        # autocast would round the rules' products to half precision: it is for forward passes
        with torch.autocast(log_likelihoods.device.type, enabled=False):
            gradients = torch.autograd.grad(
                log_likelihoods, leaves, seed, retain_graph=retain_graph, allow_unused=True
            )
            self._tracer.receiver = None
            by_leaf = {id(leaf): g for leaf, g in zip(leaves, gradients, strict=True)}
            for use in self.tensor_uses:
                g = by_leaf.get(id(use.leaf))
                if g is not None:
                    collector.add(use, g)
            collector.finish_rest()


class _Collector:
    """Gathers each parameter's gradients in one backward pass, until its last use was met.

    The square is of the sum over uses, so the first use of a shared parameter waits for the last.
    """

    def __init__(self, recorder: Recorder, finish: Finish | None, observe: Observe | None) -> None:
        self._n = recorder.n
        self._finish = finish
        self._observe = observe
        uses: list[ParameterUse] = [*recorder.layer_uses, *recorder.tensor_uses]
        self._expected = Counter(parameter for use in uses for parameter in use.parameters)
        self._pending: dict[nn.Parameter, list[Gradients]] = {}

    def add(self, use: ParameterUse, g: Tensor) -> None:
        """Adds the gradients of a use, whose output gradient is g (r, …)."""
        if self._observe is not None:
            self._observe(use.key, g)
        if self._finish is None:
            return
        for parameter, gradients in use.gradients(g, self._n):
            self._pending.setdefault(parameter, []).append(gradients)
            if len(self._pending[parameter]) == self._expected[parameter]:
                self._finish(parameter, self._pending.pop(parameter))

    def finish_rest(self) -> None:
        """Finishes the parameters with a use that ℓ does not depend on: it has no gradient."""
        if self._finish is not None:
            for parameter, gradients in self._pending.items():
                self._finish(parameter, gradients)
