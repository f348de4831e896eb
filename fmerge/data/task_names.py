"""What a task can be called: its name is that of a folder, of a metric and of a submodule."""

from collections.abc import Iterable

from torch import nn

from fmerge.errors import UserError, printable

MOST = 100
"""Most bytes of a name: file systems take 255, and suffixes are added."""


def check_task_names(names: Iterable[object], option: str) -> None:
    """Checks the names of tasks or experts, before anything is written under them.

    Args:
        names: The names.
        option: Where they were given.

    Raises:
        UserError: If one is no text, or no folder, metric or submodule could have it.
    """
    for name in names:
        if not isinstance(name, str):
            raise UserError(
                f"{option}: has the name {name!r} of type {type(name).__name__}, but a name is a "
                "text; put it in quotes, as YAML reads an unquoted no, null or 1 as such a value"
            )
        if reason := _obstacle(name):
            raise UserError(f"{option}: the name '{printable(name)}' {reason}; choose another one")


def _obstacle(name: str) -> str:
    if not name.strip() or name != name.strip():
        return "is empty, or begins or ends with a space"
    if found := next((one for one in "./\\" if one in name), None):
        return f"has '{found}', which separates parts of names and paths"
    if not name.isprintable():
        return "has a line break or another control character"
    if len(name.encode("utf-8", "replace")) > MOST:
        return f"is longer than {MOST} bytes"
    if hasattr(nn.ModuleDict(), name):
        return "is a word that PyTorch's modules have a meaning for"
    return ""
