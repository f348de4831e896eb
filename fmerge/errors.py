"""The exception that a user sees as one line, and helpers that raise or word it."""

from inspect import isabstract, isclass
from types import ModuleType
from typing import TypeVar

_Kind = TypeVar("_Kind")


class UserError(Exception):
    """A mistake in what the user passed: a file, a name, a value or a combination of them.

    The message is one line that names the culprit, what was expected, what was found and what
    to do. The command line prints it without a traceback and exits with code 2.

    Args:
        message: The line.
    """

    def __init__(self, message: str = "") -> None:
        # a DataLoader's worker hands an error over as the text of its traceback, which ends in it
        if message.startswith("Caught UserError in DataLoader worker"):
            message = message.rpartition(f"{__name__}.UserError: ")[2].strip()
        super().__init__(message)


def known(names: object) -> str:
    """Lists names for an error message.

    Args:
        names: An iterable of strings.

    Returns:
        The sorted names, separated by commas; ``(none)`` when there are none.
    """
    shown = sorted(map(str, names))  # type: ignore[call-overload]
    return ", ".join(map(printable, shown)) or "(none)"


def printable(text: str) -> str:
    """Writes a text of a file in one line.

    Args:
        text: Any text.

    Returns:
        The text, in which line breaks and other control characters are escaped.
    """
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def check_within(name: str, value: float, interval: str) -> None:
    """Checks that a number lies in an interval.

    Args:
        name: The parameter or option.
        value: Its value.
        interval: The interval in mathematical notation, such as ``(0, 1]`` or ``[0, inf)``.

    Raises:
        UserError: If it does not; NaN lies in no interval.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise UserError(f"{name}: is {value}, but must lie in {interval}")


def classes_of(module: ModuleType, base: type) -> dict[str, type]:
    """Finds the classes of a module that can be named where an object of a kind is needed.

    Args:
        module: Its public names are in ``__all__``.
        base: The kind.

    Returns:
        Name to class, of the public classes that derive from ``base`` and are not abstract.
    """
    found = {name: getattr(module, name) for name in module.__all__}
    return {
        name: one
        for name, one in found.items()
        if isclass(one) and issubclass(one, base) and not isabstract(one)
    }


def object_of(parameter: str, value: object, kind: type[_Kind], module: ModuleType) -> _Kind:
    """Takes an object of a kind, or makes it of its class or of its class's name.

    Args:
        parameter: Where the value was given, for the message.
        value: The object; or a class of the kind or its name, which is made with its defaults.
        kind: The kind.
        module: Where the names are known.

    Returns:
        The object.

    Raises:
        UserError: If it is of another kind, the name is unknown, or there are no defaults.
    """
    if isinstance(value, kind):
        return value
    classes = classes_of(module, kind)
    if isinstance(value, str) and value not in classes:
        raise UserError(f"{parameter}: unknown name {value!r}; known: {known(classes)}")
    wanted = classes[value] if isinstance(value, str) else value
    if not (isclass(wanted) and issubclass(wanted, kind)):
        raise UserError(
            f"{parameter}: is {value!r}, but must be a {kind.__name__} or the name of one; "
            f"known: {known(classes)}"
        )
    try:
        return wanted()
    except TypeError as error:  # one that is made of other objects has no defaults
        name = wanted.__name__
        raise UserError(
            f"{parameter}: {name} takes arguments; give an object, not a name"
        ) from error


def counted(number: int, what: str) -> str:
    """Counts things in words.

    Args:
        number: How many.
        what: The word for one of them.

    Returns:
        Such as "1 trial" or "3 trials".
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def shortened(text: object, most: int) -> str:
    """Shortens a text that others wrote, between two words.

    Args:
        text: A text or an error, whose lines become one.
        most: The most characters.

    Returns:
        The text, or its beginning and an ellipsis.
    """
    line = " ".join(str(text).split())
    if len(line) <= most:
        return line
    # a single long word, such as a path, is all there is: its beginning is better than nothing
    whole = line[: most - 1].rpartition(" ")[0] or line[: most - 2]
    return f"{whole} …"
