"""The one exception that is shown to a user as a single line."""


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
