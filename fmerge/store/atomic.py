"""Files and folders that are whole or absent: written under another name, then renamed.

A rename within one file system is atomic. But the system may write it to the disk before the
content of the file, and the other way round: the content is synced before the rename, and the
folder, which holds the name, after it.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmerge.errors import UserError

LOCK = ".fmerge.lock"
"""Name of the file that a run locks in its folder."""


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Writes a file under a temporary name in the same folder, then renames it.

    Args:
        path: The file; its folder is made.

    Yields:
        The temporary path to write to. If the block raises, nothing is left behind and what
        was at ``path`` stays.
    """
    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files of runs that were killed during ``replacing_file``.

    Args:
        path: The file that was being replaced. No other run may be writing it.
    """
    if path.parent.is_dir():
        for one in path.parent.iterdir():
            if one.name.startswith(f".{path.name}.") and one.suffix == path.suffix:
                one.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Fills a folder under a temporary name beside the final one, then renames it.

    Args:
        path: The folder; an old one is removed once the new one is whole.

    Yields:
        The temporary folder. If the block raises, nothing is left behind and what was at
        ``path`` stays.
    """
    with explaining(path):
        recover_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
        try:
            yield temporary
            for one in temporary.rglob("*"):
                _sync(one)
            _sync(temporary)
            temporary.chmod(0o777 & ~_umask())
            # a folder cannot be renamed onto one that is not empty: the old one is moved aside.
            # A kill between any two of these lines leaves the old or the new one whole, and
            # recover_folder finds which
            if path.exists():
                path.replace(_aside(path))
            temporary.replace(path)
            _sync(path.parent)
            shutil.rmtree(_aside(path), ignore_errors=True)
        except BaseException:
            recover_folder(path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Repairs what a kill during ``replacing_folder`` left.

    Args:
        path: The folder that was being replaced.
    """
    aside = _aside(path)
    # the kill came between the two renames: the new folder may not be whole, the old one is
    if aside.is_dir() and not path.exists():
        aside.replace(path)
    shutil.rmtree(aside, ignore_errors=True)
    for unfinished in path.parent.glob(f".{path.name}.new-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turns an error of the disk into one line that says what to do.

    Args:
        path: What is being written.

    Yields:
        Nothing.

    Raises:
        UserError: If the disk is full or read-only, or access to it is denied.
    """
    try:
        yield
    except Exception as error:
        if (reason := disk_trouble(error, path)) is None:
            raise
        raise UserError(reason) from error


# what check_place cannot foresee, such as a folder of /proc
_NO_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


def disk_trouble(error: BaseException, path: Path | None = None) -> str | None:
    """Words an error of the disk.

    Args:
        error: Any error.
        path: What was being written, if known.

    Returns:
        One line; None for other errors.
    """
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)  # safetensors and torch raise their own errors with the system's message
    name = path or getattr(error, "filename", None) or "the output"
    if number in _FULL or os.strerror(errno.ENOSPC) in text:
        place = Path(name).absolute().parent if path else "its disk"
        return (
            f"{name}: cannot be written, as the disk is full; free space on {place}, then give "
            "the same command again: what was written before is whole"
        )
    if isinstance(error, OSError) and number in _CLOSED:
        return (
            f"{name}: cannot be written ({error.strerror}); name an --output that you may write "
            "to, or change its permissions"
        )
    if path and isinstance(error, OSError) and number in _NO_PLACE:
        return f"{name}: cannot be made ({error.strerror}); name an --output in another place"
    return None


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Args:
        path: The file.
        text: Its content, written as UTF-8.
    """
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Appends a line to a log and waits until it is on the disk.

    Args:
        path: The log, made if absent.
        line: The line without its end.
    """
    with explaining(path), path.open("a", encoding="utf-8") as log:
        log.write(line + "\n")
        log.flush()
        os.fsync(log.fileno())


def check_place(path: Path, option: str = "--output", writable: bool = False) -> None:
    """Checks that a file or folder can be made at a path, as far as the names in it tell.

    Args:
        path: The path.
        option: The option that gave it.
        writable: Whether to try to write there too; nothing is left behind.

    Raises:
        UserError: If it is no name of a file, is below a file, or it or a folder above it is a
            link to nothing.
    """
    absolute = Path(os.path.abspath(path))
    # each name alone: what is below a folder that is absent is not looked up
    for name in (str(absolute), *(absolute.anchor + part for part in absolute.parts[1:])):
        try:
            os.lstat(name)
        except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
            if not isinstance(error, OSError) or error.errno == errno.ENAMETOOLONG:
                shown, reason = repr(str(path))[:200], getattr(error, "strerror", error)
                raise UserError(f"{option} {shown}: is no path ({reason})") from error
    for one in reversed([absolute, *absolute.parents]):
        there = os.path.exists(one)
        if not there and os.path.islink(one):
            target = os.readlink(one)
            raise UserError(
                f"{option} {path}: {one} is a link to {target}, which does not exist; make that, "
                "remove the link, or name another place"
            )
        if there and one != absolute and not one.is_dir():
            raise UserError(
                f"{option} {path}: {one} is a file, so nothing can be made below it; name another "
                "place"
            )
    if writable:
        nearest = next(one for one in (absolute, *absolute.parents) if one.exists())
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".fmerge-", dir=nearest))
        except OSError as error:
            raise UserError(
                f"{option} {path}: nothing can be written in {nearest} ({error.strerror}); name "
                "another place"
            ) from error


def check_new_folder(path: Path, overwrite: bool) -> None:
    """Checks that a run may write into a folder.

    Args:
        path: The output folder.
        overwrite: Whether its content may be replaced.

    Raises:
        UserError: If it is a file, or is not empty and ``overwrite`` is off.
    """
    check_place(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path}: is a file, but a folder is needed; name another place")
    if not overwrite and path.is_dir() and any(one.name != LOCK for one in path.iterdir()):
        raise UserError(
            f"--output {path}: the folder is not empty; name another or add --overwrite true"
        )


def check_new_file(path: Path, overwrite: bool) -> None:
    """Checks that a run may write a file.

    Args:
        path: The output file.
        overwrite: Whether a file there may be replaced.

    Raises:
        UserError: If it is a folder, or exists and ``overwrite`` is off.
    """
    check_place(path)
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder, but a file is needed; add a file name")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path}: exists already; name another or add --overwrite true")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)  # a file or a folder
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    # it can only be read by setting it
    mask = os.umask(0)
    os.umask(mask)
    return mask
