"""Paths as people write them: with ``~`` and environment variables."""

import os
import re
from pathlib import Path

from fmerge.errors import UserError

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
# a text of unknown meaning is a path where it begins with ~ or a variable that ends at a slash or
# at its end, or has no white space but both a slash and a variable
_PATH = re.compile(
    r"(?:~[\w.-]*|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})/[^\n]*"
    r"|\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\}"
    r"|(?=[^\s]*/)(?=[^\s]*\$)[^\s{}]*(?:\$\{[A-Za-z_]\w*\}[^\s{}]*)*"
)


def expand(path: str | Path) -> str:
    """Replaces a leading ``~`` or ``~user`` and the environment variables of a path.

    Args:
        path: A path; or another source, such as a hub id, which has neither and is returned as
            it is.

    Returns:
        The path. What exists under a name with a ``$`` keeps its name.

    Raises:
        UserError: If a variable is not set, or there is no such user.
    """
    given = os.fspath(path)
    text = os.path.expanduser(given)
    if text.startswith("~") and "/" in text and not os.path.lexists(text):
        user = text.partition("/")[0]
        raise UserError(f"{given}: there is no user whose home folder {user} is; write it out")
    if "$" not in text or os.path.lexists(text):
        return text

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise UserError(
                f"{given}: the environment variable {name} is not set; set it, or write the path "
                "out"
            )
        return os.environ[name]

    # once, as in a shell: a "$" in a variable's value is left alone
    return _VARIABLE.sub(value, text)


def path_of(path: str | Path) -> Path:
    """Expands a path.

    Args:
        path: The path.

    Returns:
        It, as ``expand`` gives it.
    """
    return Path(expand(path))


def expand_if_path(text: str) -> str:
    """Expands a text of unknown meaning where it is plainly a path.

    Args:
        text: Any value of a configuration; it may be a template or a pattern.

    Returns:
        The path, expanded; the unchanged text where it is no path, or a variable is not set.
    """
    if not _PATH.fullmatch(text):
        return text
    names = {match[1] or match[2] for match in _VARIABLE.finditer(text)}
    return expand(text) if names <= os.environ.keys() else text
