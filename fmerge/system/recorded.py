"""Objects that remember the arguments they were made with, to write them into a configuration."""

import functools
import inspect
from typing import Any


class Recorded:
    """A base whose subclasses' constructors are recorded, whatever they keep of their arguments.

    The arguments of the outermost constructor are stored when the object is made, so that they
    can be told later although the object has changed since.
    """

    _made_with: tuple[type, tuple[Any, ...], dict[str, Any]] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Wraps the subclass's constructor.

        Args:
            options: Passed on.
        """
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__init__")
        if own is None:
            return

        @functools.wraps(own)
        def recording(self: "Recorded", *args: Any, **kwargs: Any) -> None:
            if "_made_with" not in vars(self):
                object.__setattr__(self, "_made_with", (cls, args, kwargs))
            own(self, *args, **kwargs)

        cls.__init__ = recording  # type: ignore[assignment]


def arguments_of(one: object) -> dict[str, Any]:
    """Lists the arguments that an object was made with.

    Args:
        one: Any object. One that records nothing should keep its arguments as attributes of
            their names, with or without a leading underscore.

    Returns:
        Name to value; what it does not keep is left out.
    """
    known = vars(one) if hasattr(one, "__dict__") else {}
    if (recorded := known.get("_made_with")) is not None:
        made, args, kwargs = recorded
        bound = inspect.signature(made.__init__).bind(one, *args, **kwargs)
        bound.apply_defaults()
        found = dict(list(bound.arguments.items())[1:])  # without self
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                found |= found.pop(name, {})
        return found
    if type(one).__init__ is object.__init__:
        return {}
    names = list(inspect.signature(type(one).__init__).parameters)[1:]
    return {
        name: known.get(name, known.get(f"_{name}"))
        for name in names
        if name in known or f"_{name}" in known
    }
