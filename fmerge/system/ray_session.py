"""Ray, which runs parts of a command in other processes and on other machines."""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

from fmerge.errors import UserError, shortened

_LOCAL: Final = "local"
_ANSWER: Final = 3.0
"""Seconds in which the head of a cluster must take a connection."""

_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How HTTP/2 begins, with empty settings: the head answers at once, with its own. Ray itself would
try for minutes to reach what is no head."""

_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # and nothing said about it
}
_LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray of one machine then listens on the loopback interface alone, as it does on macOS."""

_CONNECT: Final = {"RAY_gcs_rpc_server_connect_timeout_s": "5", "RAY_py_gcs_connect_timeout_s": "5"}


def check_ray(address: str | None) -> None:
    """Checks that Ray is installed, and that a cluster answers.

    Args:
        address: ``host:port`` of its head; ``auto`` for the cluster that this machine belongs to;
            None for Ray on this machine alone.

    Raises:
        UserError: If it is not, or does not.
    """
    if find_spec("ray") is None:
        raise UserError(
            "--optimizer.parallel: needs the package ray, which is not installed; run: "
            "pip install 'fmerge[ray]'"
        )
    if address in {None, "auto"}:
        return
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(
            f"{_given(address)} must be auto, or host:port of the head, such as 10.0.0.5:6379"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER) as connection:
            connection.sendall(_GREETING)
            reason = "" if connection.recv(1) else "it closes the connection"
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise UserError(
            f"{_given(address)} does not answer ({reason}); 'ray status' on the head tells "
            "whether it runs"
        )


@contextmanager
def ray_session(address: str | None) -> Iterator[Any]:
    """Connects to Ray for the time of a block, or starts it on this machine.

    A Ray that this process is connected to already is used, and left as it is.

    Args:
        address: See ``check_ray``.

    Yields:
        The module.

    Raises:
        UserError: If the cluster does not answer, or Ray cannot start.
    """  # noqa: DOC501 - what the block raises passes through
    check_ray(address)
    local = address is None
    for name, value in {**_QUIET, **(_LOOPBACK if local else _CONNECT)}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    # short, as the paths of Ray's sockets are limited, and of this run alone
    folder = tempfile.mkdtemp(prefix="fmerge-ray-") if local else None
    try:
        _connect(ray, address, folder)
        with _silent(ray):
            yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def free_shares(ray: Any, resource: str, count: int) -> int:
    """Divides a resource of a cluster's machines evenly.

    Args:
        ray: The module, connected.
        resource: ``CPU`` or ``GPU``.
        count: How many shares are wanted.

    Returns:
        The largest whole number of the resource that each share can have; 0 if there are too few.
    """
    nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    return largest_share([int(one.get(resource, 0)) for one in nodes], count)


def largest_share(amounts: Sequence[int], count: int) -> int:
    """Divides amounts of several places into equal shares, none of which spans two places.

    Args:
        amounts: What each place has.
        count: How many shares are wanted.

    Returns:
        The largest size of a share, or 0.
    """
    for share in range(max(amounts, default=0), 0, -1):
        if sum(amount // share for amount in amounts) >= count:
            return share
    return 0


def _connect(ray: Any, address: str | None, folder: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL + 1}
    if folder is not None:
        quiet |= {"include_dashboard": False, "_temp_dir": folder}
    with _own_signals():
        try:
            ray.init(address or _LOCAL, **quiet)
        except Exception as error:  # of any kind, a bare Exception among them
            reason = shortened(error, 200)
            if address is not None:
                raise UserError(f"{_given(address)} is no cluster to work on: {reason}") from error
            raise UserError(
                f"--optimizer.parallel: Ray does not start on this machine: {reason}"
            ) from error


@contextmanager
def _silent(ray: Any) -> Iterator[None]:
    """Keeps what Ray says of lost workers off the terminal, for which it has no option."""
    worker = ray._private.worker
    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *given, **options: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """Undoes what Ray does to this process's handlers, which end a run after its trial."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


def _given(address: str | None) -> str:
    return f"--optimizer.ray_address: {address}"
