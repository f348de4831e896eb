"""Files and folders that are whole or absent: written beside, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmerge.errors import UserError


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Writes a file under a temporary name beside its place, then renames it.

    Args:
        path: Where the file shall be; its folder is made.

    Yields:
        The temporary path to write to. If the block raises, nothing is left behind and what
        was at ``path`` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Fills a folder under a temporary name beside its place, then renames it.

    Args:
        path: Where the folder shall be; what was there goes once the new one is whole.

    Yields:
        The temporary folder. If the block raises, nothing is left behind and what was at
        ``path`` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o777 & ~_umask())
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Args:
        path: Where the file shall be.
        text: Its content, written as UTF-8.
    """
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Adds a line to a log and waits until it is on the disk.

    Args:
        path: The log, made if absent.
        line: The line without its end.
    """
    with path.open("a", encoding="utf-8") as log:
        log.write(line + "\n")
        log.flush()
        os.fsync(log.fileno())


def check_new_folder(path: Path, overwrite: bool) -> None:
    """Proves that a run may write into a folder.

    Args:
        path: The output folder.
        overwrite: Whether what is in it may be replaced.

    Raises:
        UserError: If it is a file, or holds something and ``overwrite`` is off.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path}: is a file, but a folder is needed; name another place")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(
            f"--output {path}: the folder is not empty; name another or add --overwrite true"
        )


def check_new_file(path: Path, overwrite: bool) -> None:
    """Proves that a run may write a file.

    Args:
        path: The output file.
        overwrite: Whether a file there may be replaced.

    Raises:
        UserError: If it is a folder, or exists and ``overwrite`` is off.
    """
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder, but a file is needed; add a file name")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path}: exists already; name another or add --overwrite true")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
