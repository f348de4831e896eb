"""One run at a time in an output folder."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fmerge.errors import UserError
from fmerge.store.atomic import LOCK, check_new_folder, explaining

_LOG = logging.getLogger(__name__)


def lock_of(output: Path, folder: bool) -> Path:
    """Names the lock of an output.

    Args:
        output: A run's folder, or the file it writes.
        folder: Whether it is a folder.

    Returns:
        A file in the folder, or beside the file.
    """
    return output / LOCK if folder else output.with_name(f".{output.name}.lock")


@contextmanager
def only_run(lock: Path, on: bool = True) -> Iterator[None]:
    """Lets no other run write to an output until this one ends, in whatever way.

    The file names the process and host that hold it, for the error message. What excludes others
    is the system's lock on the file, which ends with its process: the file of a killed run is
    taken over.

    Args:
        lock: The file. It and the folders made for it are removed in the end, unless in use.
        on: Whether to lock at all; only the first of several processes does.

    Yields:
        Nothing.

    Raises:
        UserError: If another run holds it, or it cannot be made.
    """
    if not on:
        yield
        return
    check_new_folder(lock.parent, overwrite=True)
    made = [one for one in (lock.parent, *lock.parent.parents) if not one.exists()]
    try:
        with explaining(lock):
            handle = _take(lock)
    except BaseException:
        _remove(made)
        raise
    try:
        yield
    finally:
        # removed before the lock is given up: afterwards it may be the file of another run
        with suppress(OSError):  # a folder that has become read-only is reported by its writers
            lock.unlink()
        os.close(handle)
        _remove(made)


def _remove(made: Iterable[Path]) -> None:
    """Removes the folders that were made for a lock, unless they hold something."""
    for folder in made:
        try:
            folder.rmdir()
        except OSError:  # not empty: it holds results, or the lock of another run
            if folder.exists():
                break


_TRIES = 100
"""How often the lock is made again: another run can remove its folder, but never that often."""


def _take(lock: Path) -> int:
    tries = 0
    while True:
        # the run that held the lock may remove file and folder at any moment: then try again
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError):
            tries += 1
            if tries == _TRIES:  # such as below /proc, where a folder cannot be made
                raise
            time.sleep(0.001)
            continue
        try:
            _hold(lock, handle)
            # a file that was removed after it was opened can be locked, but excludes nobody
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
