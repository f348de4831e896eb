"""Where parameters are used: calls of covered layers, and batch-independent tensors."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from fmerge.fisher.engine.derived import placed
from fmerge.fisher.engine.gradients import Gradients, Pullback, Rows, Scattered, Summed
from fmerge.fisher.engine.row_order import RowOrder, example_major, owners
from fmerge.fisher.engine.rules import Rule, rule_of


@dataclass(frozen=True)
class Layer:
    """A covered layer.

    Attributes:
        name: Its name.
        module: The layer itself.
        rule: The rule of its type.
        parameters: The parameters that are differentiated by the rule, by the layer's own names.
            Of a function that is called without its layer: tensors computed from parameters.
    """

    name: str
    module: Any
    rule: Rule
    parameters: dict[str, Any]


@dataclass(slots=True)
class LayerUse:
    """One call of a covered layer, or of a layer's function.

    Attributes:
        key: The layer's name and how often it was called before.
        layer: The layer.
        x: Its input (r, …).
        row_order: How the rows belong to examples.
        version: Version of x when it was read, to notice changes in place.
    """

    key: str
    layer: Layer
    x: Tensor
    row_order: RowOrder
    version: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that receive a gradient through this call."""
        return list(self.layer.parameters.values())

    def owners(self, rows: int, n: int, order: RowOrder) -> Tensor:
        """Tells whose each of r rows would be in an order (r,)."""
        return owners(rows, n, order)

    def gradients(self, g: Tensor, n: int) -> Iterator[tuple[nn.Parameter, Gradients]]:
        """Applies the layer's rule.

        Args:
            g: Gradient of the layer's output (r, …).
            n: Number of examples.

        Yields:
            Each parameter and its gradients through this call.

        Raises:
            ValueError: If the rule gives a tensor of another shape than n gradients.
        """
        layer, x = self.layer, example_major(self.x, n, self.row_order)
        g = example_major(g, n, self.row_order)
        for own_name, parameter in layer.parameters.items():
            found = layer.rule.gradients[own_name](layer.module, x, g, n)
            if isinstance(found, Tensor):
                if found.shape != (n, *parameter.shape):
                    raise ValueError(
                        f"the rule of '{layer.name}' gave gradients of shape {tuple(found.shape)} "
                        f"for '{own_name}'; expected {(n, *parameter.shape)}"
                    )
                found = Summed(found)
            yield parameter, found

    def check_unchanged(self) -> None:
        """Compares the input's version with that of the call.

        Raises:
            RuntimeError: If the input was changed in place after the layer read it.
        """
        if self.x._version != self.version:
            raise RuntimeError(
                f"the input of '{self.key}' was changed in place after the layer read it: its "
                f"gradients cannot be formed"
            )


@dataclass(slots=True)
class FunctionUse(LayerUse):
    """One call of a layer's function with tensors that are computed from parameters.

    Attributes:
        origins: The parameters of each of these tensors, by its name.
    """

    origins: dict[str, list[nn.Parameter]]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that receive a gradient through this call."""
        return [parameter for below in self.origins.values() for parameter in below]

    def gradients(self, g: Tensor, n: int) -> Iterator[tuple[nn.Parameter, Gradients]]:
        """Applies the rule, and follows each tensor back to its parameters.

        Args:
            g: Gradient of the function's result (r, …).
            n: Number of examples.

        Yields:
            Each parameter and its gradients through this call.
        """
        # a dataclass with slots is another class than the one that super() would look for
        found = zip(self.origins.values(), LayerUse.gradients(self, g, n), strict=True)
        for below, (u, own) in found:
            for parameter in below:
                yield parameter, placed(own, u, parameter)


@dataclass(slots=True)
class TensorUse:
    """A batch-independent tensor u at the place where it meets the batch.

    Attributes:
        key: Its number in the forward pass.
        tensor: u, with the graph down to its parameters.
        leaf: u repeated for every row (r, …), a leaf that is detached from that graph.
        row_order: How the rows belong to examples.
        parameters: The parameters that u is computed from.
        rows: Indices of the rows of the one table that u consists of; None if it does not.
        entries: Indices of the entries of the one parameter that u consists of; None likewise.
        version: Version of u, to notice changes in place.
    """

    key: str
    tensor: Tensor
    leaf: Tensor
    row_order: RowOrder
    parameters: list[nn.Parameter]
    rows: Tensor | None = None
    entries: Tensor | None = None
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.version = self.tensor._version

    def owners(self, rows: int, n: int, order: RowOrder) -> Tensor:
        """Tells whose each of r rows would be in an order (r,)."""
        return owners(rows, n, order)

    def gradients(self, g: Tensor, n: int) -> Iterator[tuple[nn.Parameter, Gradients]]:
        """Sums the gradient over each example's rows and over what u was broadcast to.

        Args:
            g: Gradient of the leaf (r, …).
            n: Number of examples.

        Yields:
            Each parameter and its gradients through u.

        Raises:
            RuntimeError: If u was changed in place after it met the batch.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor computed from parameters was changed in place after its use "
                f"('{self.key}'): its gradients cannot be formed"
            )
        own = example_major(g, n, self.row_order).reshape(n, -1, *g.shape[1:]).sum(1)
        inner = inner_shape(self.tensor, g.ndim)
        values = own.sum_to_size(n, *[1] * (g.ndim - 1 - len(inner)), *inner)
        values = values.reshape(n, *self.tensor.shape)
        for parameter in self.parameters:
            # from the cheapest form to the one that is always right
            if self.rows is not None:
                ids = self.rows.reshape(1, -1).expand(n, -1)
                yield parameter, Rows(ids, values.reshape(n, ids.shape[1], -1))
            elif parameter is self.tensor:
                yield parameter, Summed(values)
            elif self.entries is not None:
                # u may be a single entry, without dimensions
                yield parameter, Scattered(self.entries.flatten(), values.reshape(n, -1))
            else:
                yield parameter, Pullback(self.tensor, values, parameter)


ParameterUse = LayerUse | TensorUse
"""Whatever receives an output gradient (r, …) and turns it into gradients of parameters."""

Receiver = Callable[[LayerUse, Tensor], None]
"""Called with a layer's use and its output gradient, in a backward pass."""

Finish = Callable[[nn.Parameter, list[Gradients]], None]
"""Called with a parameter and its gradients through all its uses."""


def covered_layers(
    module: nn.Module,
    parameters: Container[nn.Parameter],
    whole: Mapping[nn.Parameter, nn.Parameter] = MappingProxyType({}),
) -> list[Layer]:
    """Lists the layers of a module that have rules.

    Args:
        module: Any module.
        parameters: The parameters that are to be differentiated by rule.
        whole: For a share of a parameter that is split over processes, the parameter.

    Returns:
        The layers that have any of them.
    """
    layers = []
    for name, layer in module.named_modules():
        rule = rule_of(layer)
        if rule is None:
            continue
        own = {name: whole.get(one, one) for name, one in layer.named_parameters(recurse=False)}
        chosen = {
            own_name: parameter for own_name, parameter in own.items() if parameter in parameters
        }
        if chosen:
            layers.append(Layer(name, layer, rule, chosen))
    return layers


def inner_shape(u: Tensor, ndim: int) -> tuple[int, ...]:
    """Gives the shape of u without the dimension of size one that stands for the batch's rows.

    Args:
        u: A batch-independent tensor.
        ndim: Number of dimensions of what it meets.

    Returns:
        The shape, of fewer than ndim dimensions.
    """
    return tuple(u.shape if u.ndim < ndim else u.shape[1:])


def graph_leaves(tensors: list[Tensor]) -> list[Tensor]:
    """Finds the leaves that a graph ends in.

    Args:
        tensors: Tensors with a graph, or leaves.

    Returns:
        Every leaf once.

    Raises:
        RuntimeError: If reentrant checkpointing hides a part of the graph.
    """
    leaves = [t for t in tensors if t.grad_fn is None and t.requires_grad]
    stack: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(stack)
    ends: dict[type, bool] = {}  # names are compared once for each type: nodes come in thousands
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind not in ends:
            if kind.__name__ == "CheckpointFunctionBackward":
                raise RuntimeError(
                    "gradient checkpointing is not supported by the Fisher engine (found "
                    "CheckpointFunction in the graph), turn it off for the Fisher pass"
                )
            ends[kind] = kind.__name__ == "AccumulateGrad"
        if ends[kind]:
            leaves.append(node.variable)
            continue
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return leaves
