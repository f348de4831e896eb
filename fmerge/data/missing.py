"""Missing values of a row, which a template must not render as a word."""

from collections.abc import Mapping
from typing import Any


class TemplateError(Exception):
    """A template that cannot be compiled or rendered; the message is the reason alone."""


class Missing:
    """A missing value: false, none and equal to none, but an error where more is done with it.

    Args:
        name: Where it is missing, such as ``question`` or ``choices.text[2]``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Missing)

    def __hash__(self) -> int:
        return hash(None)

    def _refuse(self, *_: Any) -> Any:
        raise TemplateError(
            f"column '{self.name}' is empty; test it with 'is none', or remove the row"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as the __html__ that Jinja looks for
            raise AttributeError(name)
        return self._refuse()

    __str__ = __repr__ = __format__ = __int__ = __float__ = __round__ = _refuse
    __len__ = __iter__ = __contains__ = __getitem__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse
    __neg__ = __pos__ = __abs__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse


def with_missing(value: Any, name: str = "") -> Any:
    """Replaces None and NaN in a row.

    Args:
        value: A row, or a part of it.
        name: The part's name.

    Returns:
        A copy with ``Missing`` in their place.
    """
    if value is None or (isinstance(value, float) and value != value):
        return Missing(name)
    if isinstance(value, Mapping):
        return {
            key: with_missing(one, f"{name}.{key}" if name else str(key))
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [with_missing(one, f"{name}[{i}]") for i, one in enumerate(value)]
    return value
