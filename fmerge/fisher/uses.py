"""Where parameters are used: calls of covered layers, and tensors made of parameters alone."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from fmerge.fisher.rules import Rule
from fmerge.fisher.terms import Pulled, Rows, Summed, Term

Layout = Literal["blocks", "tiles", "none"]
"""How k·n rows belong to n examples: r // k, r % n, or not at all."""


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
        inner = inner_shape(self.tensor, g.ndim)
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
