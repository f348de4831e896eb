"""A batch's size and single examples; a module's eval mode and ``requires_grad`` flags."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

LogProbs = Callable[[Any], Tensor]
"""From a batch to ℓ (n, c), the log-likelihoods of each example's candidate answers."""


def batch_labels(batch: Any) -> Tensor:
    """Reads the true answers of a batch from its ``"labels"``.

    Args:
        batch: A mapping with ``"labels"`` (n,).

    Returns:
        The labels (n,).
    """
    labels: Tensor = batch["labels"]
    return labels


def batch_size(batch: Any) -> int:
    """Counts the examples of a batch.

    Args:
        batch: Tensors in any nesting of mappings and sequences.

    Returns:
        The first dimension of the first tensor.

    Raises:
        ValueError: If the batch holds no tensor that has a dimension.
    """
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise ValueError(f"found no tensor to count examples by in a batch of {type(batch).__name__}")


def example(batch: Any, i: int, n: int) -> Any:
    """Selects one example of a batch.

    Args:
        batch: Tensors in any nesting of mappings and sequences.
        i: The example's position in the batch.
        n: The batch's size.

    Returns:
        The same nesting; tensors of first dimension n, and sequences of n texts, hold example i
        alone (1, …).
    """
    return replace(batch, n, lambda tensor: tensor[i : i + 1], lambda texts: texts[i : i + 1])


def replace(
    batch: Any,
    n: int,
    change: Callable[[Tensor], Tensor],
    change_texts: Callable[[Sequence[str]], Sequence[str]] = lambda texts: texts,
) -> Any:
    """Changes the tensors of a batch that hold one row per example.

    Args:
        batch: Tensors in any nesting of mappings and sequences.
        n: The batch's size.
        change: From a tensor of first dimension n to its replacement.
        change_texts: From n texts to their replacement.

    Returns:
        The same nesting.
    """
    if isinstance(batch, Tensor):
        return change(batch) if batch.ndim and len(batch) == n else batch
    if isinstance(batch, Mapping):
        return {k: replace(value, n, change, change_texts) for k, value in batch.items()}
    if isinstance(batch, list | tuple):
        if len(batch) == n and all(isinstance(one, str) for one in batch):
            return change_texts(batch)
        return type(batch)(replace(value, n, change, change_texts) for value in batch)
    return batch


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Puts modules in eval mode, and restores each one's own mode afterwards.

    Args:
        modules: A module, and all modules inside it.

    Yields:
        Nothing; there is no dropout inside the block.
    """
    training = [module for module in modules if module.training]
    try:
        if training:
            modules[0].eval()
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def differentiating(
    parameters: Iterable[nn.Parameter], among: Iterable[nn.Parameter]
) -> Iterator[None]:
    """Lets some parameters require grad, and restores every flag afterwards.

    Args:
        parameters: Those that require grad inside the block.
        among: All parameters whose flags are set; the others do not require grad inside.

    Yields:
        Nothing.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in among]
    # by id: comparing tensors compares their entries
    chosen = {id(parameter) for parameter in parameters}
    try:
        for parameter, _ in flags:
            parameter.requires_grad = id(parameter) in chosen
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad = flag


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        for value in batch:
            yield from _leaves(value)
    else:
        yield batch
