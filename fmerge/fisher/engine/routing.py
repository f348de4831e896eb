"""A recorded call of fused experts: tokens sorted by expert, one product for each expert.

Letters: r rows of the batch's tokens, m pairs of a token and an expert that it is sent to.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fmerge.fisher.engine.experts import Routing
from fmerge.fisher.engine.gradients import Gradients
from fmerge.fisher.engine.parameter_uses import Layer, LayerUse
from fmerge.fisher.engine.row_order import RowOrder, owners
from fmerge.fisher.engine.tracer import Tracer


@dataclass(slots=True)
class RoutedUse(LayerUse):
    """A product with one matrix for each expert.

    Attributes:
        tokens: The row of the batch that each pair is of (m,).
        rows: Their number r.
    """

    tokens: Tensor
    rows: int

    def owners(self, rows: int, n: int, order: RowOrder) -> Tensor:
        """Tells whose each pair is."""
        return owners(self.rows, n, order)[self.tokens.cpu()]

    def gradients(self, g: Tensor, n: int) -> Iterator[tuple[nn.Parameter, Gradients]]:
        """Applies the rule, with the pairs of each expert sorted by example.

        Args:
            g: Gradient of the product (m, o).
            n: Number of examples.

        Yields:
            Each parameter and its gradients through this product.
        """
        routing, x = self.layer.module, self.x
        own = self.owners(len(g), n, self.row_order).to(g.device)
        if self.row_order != "example-major":
            order = (routing.experts * n + own).argsort()
            own, x, g = own[order], x[order], g[order]  # experts ascend already
        for name, parameter in self.layer.parameters.items():
            rule = self.layer.rule.gradients[name]
            yield parameter, rule(replace(routing, owners=own), x, g, n)  # type: ignore[misc]


def routed(layer: Layer, tracer: Tracer) -> Callable[..., Any]:
    """Makes the forward function of fused experts that records its products.

    Args:
        layer: The experts.
        tracer: What the uses are kept by.

    Returns:
        The function.
    """
    module, forward = layer.module, layer.module.forward

    def recorded(*args: Any, **kwargs: Any) -> Any:
        plain = len(args) == 3 and not kwargs and torch.is_grad_enabled()
        if not plain or args[0].ndim != 2 or args[1].ndim != 2:
            return forward(*args, **kwargs)
        hidden, index, weights = args
        chosen = index.reshape(-1)
        experts, order = chosen.sort(stable=True)
        tokens = order // index.shape[1]
        counts = chosen.bincount(minlength=module.num_experts).tolist()
        products = _Products(layer, tracer, experts, counts, tokens, len(hidden))
        up = "gate_up_proj" if module.has_gate else "up_proj"
        if len(counts) > module.num_experts or not products.covered(up, "down_proj"):
            return forward(*args, **kwargs)
        inner = products.run(up, hidden[tokens])
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        outputs = products.run("down_proj", inner) * weights.reshape(-1)[order, None]
        return torch.zeros_like(hidden).index_add(0, tokens, outputs.to(hidden.dtype))

    return recorded


@dataclass
class _Products:
    """The products of one call."""

    layer: Layer
    tracer: Tracer
    experts: Tensor
    counts: list[int]
    tokens: Tensor
    rows: int

    def covered(self, *names: str) -> bool:
        """Whether rows belong to examples in the products with these matrices."""
        self.keys = {name: self.tracer.key(f"{self.layer.name}.{name}") for name in names}
        orders = [self.tracer.row_orders.get(key) for key in self.keys.values()]
        return self.rows % self.tracer.n == 0 and "none" not in orders

    def run(self, name: str, x: Tensor) -> Tensor:
        """Multiplies each expert's rows of x (m, i) by its matrix, and adds its bias."""
        module, x = self.layer.module, self.layer.rule.cast(x)
        weight: Tensor = getattr(module, name)
        bias: Tensor | None = getattr(module, f"{name}_bias", None)
        matrices = weight.detach() if module.is_transposed else weight.detach().mT
        output = torch.cat([
            part @ matrices[expert]
            for expert, part in enumerate(torch.split(x, self.counts))
            if len(part) or expert == 0
        ])
        if module.has_bias and bias is not None:
            output = output + bias.detach()[self.experts]
        own = {
            one: self.layer.parameters[one]
            for one in (name, f"{name}_bias")
            if one in self.layer.parameters
        }
        if not own:  # frozen
            return output
        routing = Routing(self.experts, self.experts, module.num_experts, module.is_transposed)
        layer = Layer(f"{self.layer.name}.{name}", routing, self.layer.rule, own)
        key, seen = self.keys[name], x.detach()
        order = self.tracer.row_orders.get(key, "example-major")
        use = RoutedUse(key, layer, seen, order, seen._version, tokens=self.tokens, rows=self.rows)
        return self.tracer.register(use, output)
