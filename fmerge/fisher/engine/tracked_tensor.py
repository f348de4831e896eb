"""Batch-independent tensors: computed from parameters alone, and tracked through a model.

PyTorch calls ``__torch_function__`` for every function that has an argument of a subclass. Batch-
independent tensors are of such a subclass, and all others are plain tensors, so the batch's own
operations, nearly all of a forward pass, cost nothing extra.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""From a function of torch, its arguments and keyword arguments to its result."""

# of the present context alone: a model that another thread runs at the same time is not tracked
_HANDLER: ContextVar[Handler | None] = ContextVar("handler", default=None)


class TrackedTensor(Tensor):
    """A tensor computed from parameters alone."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Passes a call of a torch function on to the handler.

        Args:
            func: The function.
            types: The arguments' classes; required by PyTorch.
            args: The function's arguments.
            kwargs: Its keyword arguments.

        Returns:
            The function's result.
        """
        handler = _HANDLER.get()
        # the handler calls torch functions with the same tensors: without this it would never end
        with torch._C.DisableTorchFunctionSubclass():
            # without a graph there is no gradient to attribute
            if handler is None or not torch.is_grad_enabled():
                return func(*args, **(kwargs or {}))
            return handler(func, args, kwargs or {})


class TrackedParameter(nn.Parameter):
    """A parameter that is tracked, everywhere but inside its covered layers."""

    __torch_function__ = TrackedTensor.__torch_function__


@contextmanager
def tracking(parameters: Iterable[nn.Parameter], handler: Handler) -> Iterator[None]:
    """Tracks parameters and what is computed from them alone.

    Args:
        parameters: The parameters.
        handler: Called in place of each torch function that has a tracked argument.

    Yields:
        Nothing. Afterwards the parameters have their own class again, whatever happens.
    """
    token = _HANDLER.set(handler)
    track(parameters)
    try:
        yield
    finally:
        untrack(parameters)
        _HANDLER.reset(token)


def track(parameters: Iterable[nn.Parameter]) -> None:
    """Makes parameters tracked.

    The class of the very object is changed. A view of another class (``as_subclass``) would be
    another object, which no module, hook or tied layer holds.

    Args:
        parameters: The parameters; subclasses of ``nn.Parameter`` have a dispatch of their own and
            stay as they are.
    """
    for parameter in parameters:
        if type(parameter) is nn.Parameter:
            parameter.__class__ = TrackedParameter


def untrack(parameters: Iterable[nn.Parameter]) -> None:
    """Undoes ``track``.

    Args:
        parameters: The same.
    """
    for parameter in parameters:
        if type(parameter) is TrackedParameter:
            parameter.__class__ = nn.Parameter  # type: ignore[assignment]  # as torch does with its own


def is_tracked(value: Any) -> bool:
    """Says whether a value is a batch-independent tensor.

    Args:
        value: Anything.

    Returns:
        Whether it is tracked; False for a parameter that does not require grad.
    """
    return type(value) is TrackedTensor or (type(value) is TrackedParameter and value.requires_grad)


def flatten(value: Any) -> Iterator[Any]:
    """Walks through the arguments or the result of a torch function.

    Args:
        value: Dictionaries, lists and tuples in any nesting.

    Yields:
        Their items, those of inner collections in place.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from flatten(item)
    else:
        yield value
