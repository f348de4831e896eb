"""Where parameters are used: calls of covered layers, and tensors made of parameters alone."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fmerge.fisher.engine.gradients import Moved, Pulled, Rows, Summed, Term
from fmerge.fisher.engine.rules import RULES, Rule, rules_of

Layout = Literal["blocks", "tiles", "none"]
"""How k·n rows belong to n examples: r // k, r % n, or not at all."""


_CAST = (nn.Linear, Conv1D, nn.Conv2d)


@dataclass(frozen=True)
class Layer:
    """A covered layer.

    Attributes:
        name: Its name.
        module: The layer itself.
        rules: Rules by its own parameter names.
        parameters: Those of its parameters that are differentiated by rule, by those names.
        cast: Whether autocast casts its input to half precision.
    """

    name: str
    module: Any
    rules: Mapping[str, Rule]
    parameters: dict[str, nn.Parameter]
    cast: bool


@dataclass(slots=True)
class Use:
    """One call of a covered layer.

    Attributes:
        key: The layer's name and how often it was called before.
        layer: The layer.
        x: Its input (r, …).
        layout: How its rows belong to examples.
        version: The input's version, to notice changes in place.
    """

    key: str
    layer: Layer
    x: Tensor
    layout: Layout
    version: int

    def terms(self, g: Tensor, n: int) -> Iterator[tuple[nn.Parameter, Term]]:
        """Applies the rules.

        Args:
            g: Gradient of the layer's output (r, …).
            n: Number of examples.

        Yields:
            Each parameter and its gradients through this use.
        """
        layer, x = self.layer, by_example(self.x, n, self.layout)
        g = by_example(g, n, self.layout)
        for role, parameter in layer.parameters.items():
            yield parameter, layer.rules[role](layer.module, x, g, n)

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


@dataclass(slots=True)
class Source:
    """A tensor computed from parameters alone, at the place where it meets the batch.

    Attributes:
        key: Its number in the forward pass.
        tensor: u, with the graph down to its parameters.
        leaf: u repeated for every row (r, …), cut off from that graph.
        layout: How the rows belong to examples.
        parameters: Those that u is computed from.
        rows: Numbers of the rows of the one table that u is, if it is rows.
        entries: Numbers of the entries of the one parameter that u is, if it is entries.
        version: Version of u, to notice changes in place.
    """

    key: str
    tensor: Tensor
    leaf: Tensor
    layout: Layout
    parameters: list[nn.Parameter]
    rows: Tensor | None = None
    entries: Tensor | None = None
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
        own = by_example(g, n, self.layout).reshape(n, -1, *g.shape[1:]).sum(1)
        inner = inner_shape(self.tensor, g.ndim)
        values = own.sum_to_size(n, *[1] * (g.ndim - 1 - len(inner)), *inner)
        values = values.reshape(n, *self.tensor.shape)
        for parameter in self.parameters:
            if self.rows is not None:
                ids = self.rows.reshape(1, -1).expand(n, -1)
                yield parameter, Rows(ids, values.reshape(n, ids.shape[1], -1))
            elif parameter is self.tensor:
                yield parameter, Summed(values)
            elif self.entries is not None:
                yield parameter, Moved(self.entries.flatten(), values.flatten(1))
            else:
                yield parameter, Pulled(self.tensor, values, parameter)


Receiver = Callable[[Use, Tensor], None]
"""What is called with a use and its output gradient, in a backward pass."""

Finish = Callable[[nn.Parameter, list[Term]], None]
"""What is called with a parameter and its gradients through all its uses."""


def covered_layers(module: nn.Module, parameters: Container[nn.Parameter]) -> list[Layer]:
    """Lists the layers of a module that have rules.

    Args:
        module: Any module.
        parameters: Those that are to be differentiated by rule.

    Returns:
        Those layers that have any of them.
    """
    layers = []
    for name, layer in module.named_modules():
        rules = rules_of(layer) if type(layer) in RULES else {}
        own = dict(layer.named_parameters(recurse=False)) if rules else {}
        chosen = {role: parameter for role, parameter in own.items() if parameter in parameters}
        if chosen:
            layers.append(Layer(name, layer, rules, chosen, type(layer) in _CAST))
    return layers


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


def inner_shape(u: Tensor, ndim: int) -> tuple[int, ...]:
    """Gives the shape of u without the dimension, of size one, that stands where rows come.

    Args:
        u: A tensor without rows of the batch.
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
        RuntimeError: If a part of the graph is hidden by reentrant checkpointing.
    """
    leaves = [t for t in tensors if t.grad_fn is None and t.requires_grad]
    stack: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(stack)
    ends: dict[type, bool] = {}  # of a few kinds of nodes, there are thousands
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
