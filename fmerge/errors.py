"""The exception that a user sees as one line, and helpers that raise or word it."""


class UserError(Exception):
    """A mistake in what the user passed: a file, a name, a value or a combination of them.

    The message is one line that names the culprit, what was expected, what was found and what
    to do. The command line prints it without a traceback and exits with code 2.
    """


def known(names: object) -> str:
    """Lists names for an error message.

    Args:
        names: An iterable of strings.

    Returns:
        The sorted names, separated by commas; ``(none)`` when there are none.
    """
    return ", ".join(sorted(map(str, names))) or "(none)"  # type: ignore[call-overload]


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
