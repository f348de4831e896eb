"""A finished run that another replaces: set aside until that one is finished, or refused."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

REPLACED: Final = ".replaced"
"""Folder, inside the run's, of the run that is being replaced."""

_MOVING: Final = ".replacing"
"""Its name while files are moved into it or out of it: after a kill they are moved out."""


def set_aside(folder: Path, names: Iterable[str]) -> None:
    """Moves the files and folders of a run out of the way.

    Args:
        folder: The run's folder.
        names: What belongs to a run, as far as it is there.
    """
    shutil.rmtree(folder / REPLACED, ignore_errors=True)
    moving = folder / _MOVING
    moving.mkdir()
    for name in names:
        if (folder / name).exists():
            (folder / name).replace(moving / name)
    moving.replace(folder / REPLACED)


def put_back(folder: Path) -> None:
    """Moves what was set aside back; nothing of the run that was to replace it may be left.

    Args:
        folder: The run's folder.
    """
    if (folder / REPLACED).is_dir():
        (folder / REPLACED).replace(folder / _MOVING)
        recover_replaced(folder)


def recover_replaced(folder: Path) -> None:
    """Ends what a kill has left half moved.

    Args:
        folder: The run's folder.
    """
    moving = folder / _MOVING
    if moving.is_dir():
        for one in moving.iterdir():
            one.replace(folder / one.name)
        moving.rmdir()
