"""One run at a time in an output folder."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fmerge.errors import UserError
from fmerge.store.atomic import LOCK, check_new_folder, explaining

_LOG = logging.getLogger(__name__)


def lock_of(output: Path, folder: bool) -> Path:
    """Says where the lock of an output is.

    Args:
        output: A run's folder, or the file it writes.
        folder: Which of the two it is.

    Returns:
        A file in the folder, or beside the file.
    """
    return output / LOCK if folder else output.with_name(f".{output.name}.lock")


@contextmanager
def only_run(lock: Path, on: bool = True) -> Iterator[None]:
    """Keeps other runs out until this one ends, in whatever way it ends.

    The file names process and host for whoever meets it. What keeps others out is the system's
    lock on it, which a killed process loses with its life: a file that nobody holds is taken over.

    Args:
        lock: The file; it and the folders made for it go in the end, unless they are in use.
        on: Whether to lock at all: only the first of several processes does.

    Yields:
        Nothing.

    Raises:
        UserError: If another run holds it, or the output's place is no folder.
    """
    if not on:
        yield
        return
    check_new_folder(lock.parent, overwrite=True)
    made = [one for one in (lock.parent, *lock.parent.parents) if not one.exists()]
    with explaining(lock):
        handle = _take(lock)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be read-only by now, which is said elsewhere
            lock.unlink()
        os.close(handle)
        for folder in made:
            try:
                folder.rmdir()
            except OSError:  # the run's results are in it, or another run already
                break


def _take(lock: Path) -> int:
    while True:
        # the one who held it may remove file and folder at any moment: then it is made again
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError):
            if lock.parent.is_file():
                raise
            continue
        try:
            _hold(lock, handle)
            if _is_at(lock, handle):
                owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
                os.ftruncate(handle, 0)
                os.pwrite(handle, owner.encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_at(lock: Path, handle: int) -> bool:
    try:
        return os.fstat(handle).st_ino == lock.stat().st_ino
    except FileNotFoundError:
        return False


def _hold(lock: Path, handle: int) -> None:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(handle, 200, 0).decode(errors="replace")
        raise UserError(
            f"{lock.parent}: another run is writing here ({lock.name} says {owner or 'nothing yet'}"
            "); wait for it to end, or name another --output"
        ) from error
    except (ImportError, OSError) as error:
        _LOG.warning("%s: cannot be locked here (%s); start no second run", lock, error)
