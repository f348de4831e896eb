"""Tensors computed from parameters alone, as a class whose functions are followed.

Only they are of that class: functions of all other tensors cost nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Follow = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""From a function of torch, its arguments and named arguments to what it returns."""

_FOLLOW: ContextVar[Follow | None] = ContextVar("follow", default=None)


class Unbatched(Tensor):
    """A tensor computed from parameters alone."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Lets a function of torch be followed.

        Args:
            func: The function.
            types: Not used.
            args: Its arguments.
            kwargs: Its named arguments.

        Returns:
            What it returns.
        """
        follow = _FOLLOW.get()
        with torch._C.DisableTorchFunctionSubclass():
            if follow is None or not torch.is_grad_enabled():
                return func(*args, **(kwargs or {}))
            return follow(func, args, kwargs or {})


class UnbatchedParameter(nn.Parameter):
    """A parameter outside its covered layers."""

    __torch_function__ = Unbatched.__torch_function__


@contextmanager
def following(parameters: Iterable[nn.Parameter], follow: Follow) -> Iterator[None]:
    """Follows parameters and what is computed from them alone.

    Args:
        parameters: The parameters.
        follow: What is called in place of each function of torch that has such an argument.

    Yields:
        Nothing. The parameters have their own class again whatever happens.
    """
    token = _FOLLOW.set(follow)
    show(parameters)
    try:
        yield
    finally:
        hide(parameters)
        _FOLLOW.reset(token)


def show(parameters: Iterable[nn.Parameter]) -> None:
    """Lets parameters be followed.

    Args:
        parameters: Any; what another class than torch's own does is its own affair.
    """
    for parameter in parameters:
        if type(parameter) is nn.Parameter:
            parameter.__class__ = UnbatchedParameter


def hide(parameters: Iterable[nn.Parameter]) -> None:
    """Undoes ``show``.

    Args:
        parameters: The same.
    """
    for parameter in parameters:
        if type(parameter) is UnbatchedParameter:
            parameter.__class__ = nn.Parameter  # type: ignore[assignment]  # as torch does with its own


def is_unbatched(value: Any) -> bool:
    """Says whether a value is a tensor computed from parameters alone.

    Args:
        value: Anything.

    Returns:
        Whether it is; not so for a parameter that does not require grad.
    """
    return type(value) is Unbatched or (type(value) is UnbatchedParameter and value.requires_grad)


def flat(value: Any) -> Iterator[Any]:
    """Walks through what a function of torch takes or returns.

    Args:
        value: Dictionaries, lists and tuples in any nesting.

    Yields:
        What they hold.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield value
