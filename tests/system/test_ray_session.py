"""Ray: how it is asked for, what is said where it is not there, and how devices are shared."""

import socket
import threading
from contextlib import nullcontext

import pytest

from fmerge.errors import UserError
from fmerge.system import ray_session
from fmerge.system.ray_session import check_ray, largest_share


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(ray_session, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package ray.*pip install 'fmerge\[ray\]'"):
        check_ray(None)


@pytest.fixture
def _installed(monkeypatch):
    monkeypatch.setattr(ray_session, "find_spec", lambda name: object())


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    "address", ["10.0.0.5", "ray://head:10001", "head:port", ":6379", "http://head:6379"]
)
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match="ray_address: .* must be auto, or host:port of the head"):
        check_ray(address)


@pytest.mark.usefixtures("_installed")
def test_an_address_that_does_not_answer_is_refused(monkeypatch):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = one.getsockname()[1]
        with pytest.raises(UserError) as refused:
            check_ray(f"127.0.0.1:{port}")
    assert str(refused.value) == (
        f"--optimizer.ray_address: 127.0.0.1:{port} does not answer (Connection refused); "
        "'ray status' on the head tells whether it runs"
    )
    monkeypatch.setattr("fmerge.system.ray_session._ANSWER", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(UserError, match=r"does not answer \(timed out\)"):
            check_ray(f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("said", [b"\0", b""])
def test_an_address_is_of_what_speaks_http_2(said):
    def answer():
        connection, _ = one.accept()
        with connection:
            greeted.append(connection.recv(99))
            connection.sendall(said)

    greeted = []
    with socket.create_server(("127.0.0.1", 0)) as one:
        thread = threading.Thread(target=answer)
        thread.start()
        with nullcontext() if said else pytest.raises(UserError, match="it closes the connection"):
            check_ray(f"127.0.0.1:{one.getsockname()[1]}")
        thread.join()
    assert greeted[0].startswith(b"PRI * HTTP/2.0")
    check_ray("auto")
    check_ray(None)


@pytest.mark.parametrize(
    ("amounts", "count", "share"),
    [
        ([8], 2, 4),
        ([8], 3, 2),
        ([8, 4], 3, 4),
        ([8, 3], 3, 3),  # two on the first machine, one on the second
        ([1, 1, 1], 3, 1),
        ([1, 1, 1], 4, 0),
        ([], 1, 0),
    ],
)
def test_no_share_spans_two_machines(amounts, count, share):
    assert largest_share(amounts, count) == share
