"""Options that take a class: what can be named there, listed and found in any spelling."""

from collections.abc import Sequence
from types import ModuleType

from lightning.pytorch import callbacks, loggers

from fmerge import data, methods, modules, search
from fmerge.cli.help import rows
from fmerge.errors import classes_of

CLASSES: dict[str, tuple[ModuleType, type]] = {
    "method": (methods, methods.MergeMethod),
    "search": (search, search.Search),
    "tasks": (data, data.TaskData),
    "model": (modules, modules.TaskModule),
    "callbacks": (callbacks, callbacks.Callback),
    "logger": (loggers, loggers.Logger),
}
"""The last part of an option that takes a class: where its classes are, and of what kind."""

_OWN = ("method", "search", "model", "tasks")


def _kind(option: str) -> str:
    kind = option.removeprefix("--").rpartition(".")[2]
    return kind if option.startswith("--") and kind in _OWN else ""


def spelled(args: Sequence[str]) -> list[str]:
    """Spells the classes of a command line as they are: ``--method ties`` means TIES.

    Args:
        args: The command line.

    Returns:
        It, with the names of classes that differ in upper and lower case alone replaced.
    """
    found = list(args)
    for index, option in enumerate(args):
        name, equals, joined = option.partition("=")
        if not (kind := _kind(name)) or (not equals and index + 1 == len(args)):
            continue
        value = joined if equals else args[index + 1]
        own = {one.lower(): one for one in classes_of(*CLASSES[kind])}
        exact = own.get(value.lower(), value)
        found[index if equals else index + 1] = f"{name}={exact}" if equals else exact
    return found


def listing(args: Sequence[str]) -> str:
    """Lists what can be named, where ``--method.help`` or the like is given no class.

    Args:
        args: The command line.

    Returns:
        A line for each class, the first of its documentation; nothing where none was asked for.
    """
    last = args[-1] if args else ""
    if not last.endswith(".help") or not (kind := _kind(last.removesuffix(".help"))):
        return ""
    lines = rows(classes_of(*CLASSES[kind]))
    return "\n".join([*lines, f"{last} NAME lists the parameters of one of them."])
