"""Tiny models, tokenizers and tasks, made on the spot; the network is closed."""

import importlib.util
import re
import socket
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from tests import tiny

# tiny operations on several threads spend their time waiting for each other
torch.set_num_threads(1)


MISSING = [
    name for name in ("h5py", "hypothesis", "peft", "ray") if importlib.util.find_spec(name) is None
]
"""Optional packages that are not installed; test files that import one are left out."""


def pytest_ignore_collect(collection_path):
    if MISSING and collection_path.suffix == ".py":
        uses = rf"^(import|from) ({'|'.join(MISSING)})\b"
        if re.search(uses, collection_path.read_text(), flags=re.MULTILINE):
            return True
    return None


def pytest_report_header():
    return [f"{name} is not installed: the files that import it are left out" for name in MISSING]


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Leaves a report's pictures undrawn in tests that look at none, to save time."""
    if "report" not in str(request.path.relative_to(Path(__file__).parent)):
        drawn = Figure.savefig

        def savefig(self, file, **options):
            if options.get("format") == "svg":
                file.write(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
            else:
                drawn(self, file, **options)

        monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture(autouse=True)
def _closed_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family == socket.AF_UNIX or str(address[0]) in {"127.0.0.1", "localhost", "::1"}:
            return connect(self, address)
        raise AssertionError(f"a test asked the network for {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> tiny.Zoo:
    """A base, experts of two tasks and their data files, shared and never changed."""
    return tiny.make_zoo(tmp_path_factory.mktemp("zoo"))


def pytest_terminal_summary(terminalreporter):
    """Prints the figures that tests recorded, whichever process they ran in."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "figure":
                terminalreporter.write_line(value)
