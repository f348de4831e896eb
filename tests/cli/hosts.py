"""Two hosts on one machine: network namespaces with an address, a name and a folder each."""

import ctypes
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch

_NEW_NETWORK, _NEW_NAME = 0x40000000, 0x04000000


@dataclass(frozen=True)
class Host:
    """A host of the cluster.

    Attributes:
        rank: Its number.
        address: Its address, which the other one reaches.
        folder: Where its processes run: relative paths are its own.
        namespace: Its network namespace; None where the system allows none, so that both hosts
            are on the loopback device.
    """

    rank: int
    address: str
    folder: Path
    namespace: str | None

    def enter(self) -> None:
        """Puts this process on the host."""
        os.chdir(self.folder)
        if self.namespace is None:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/var/run/netns/{self.namespace}") as handle:
            assert libc.setns(handle.fileno(), _NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
        assert libc.unshare(_NEW_NAME) == 0, os.strerror(ctypes.get_errno())
        socket.sethostname(f"node{self.rank}")
        os.environ["GLOO_SOCKET_IFNAME"] = f"eth{self.rank}"


@contextmanager
def two_hosts(folder: Path) -> Iterator[list[Host]]:
    """Makes two hosts, joined by a virtual cable.

    Args:
        folder: Where each gets a folder of its own.

    Yields:
        The hosts.
    """
    names = [f"fm{os.getpid()}n{rank}" for rank in range(2)]
    folders = [folder / f"node{rank}" for rank in range(2)]
    for one in folders:
        one.mkdir(parents=True)
    made = []
    try:
        if os.geteuid() == 0 and shutil.which("ip"):
            for name in names:
                if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
                    break
                made.append(name)
        if len(made) < 2:
            yield [Host(rank, "127.0.0.1", folders[rank], None) for rank in range(2)]
            return
        ends = [f"{name}v" for name in names]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for rank, (name, end) in enumerate(zip(names, ends, strict=True)):
            _ip("link", "set", end, "netns", name, "name", f"eth{rank}")
            _ip("-n", name, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", f"eth{rank}")
            for device in (f"eth{rank}", "lo"):
                _ip("-n", name, "link", "set", device, "up")
        yield [Host(rank, f"10.77.0.{rank + 1}", folders[rank], names[rank]) for rank in range(2)]
    finally:
        for name in made:
            _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def torchrun(hosts: Sequence[Host], port: int, rank: int, local: int) -> dict[str, str]:
    """The environment that torchrun gives a process."""
    return {
        **{
            "MASTER_ADDR": hosts[0].address,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(2 * len(hosts)),
        },
        **{"RANK": str(2 * rank + local), "LOCAL_RANK": str(local), "GROUP_RANK": str(rank)},
        **{"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"},
    }


def slurm(hosts: Sequence[Host], port: int, rank: int, local: int) -> dict[str, str]:
    """The environment that ``srun`` gives a task; its nodes have names, which a site resolves."""
    return {
        **{
            "SLURM_JOB_ID": str(port),
            "SLURM_JOB_NAME": "merge",
            "SLURM_NTASKS": str(2 * len(hosts)),
        },
        **{
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NNODES": str(len(hosts)),
            "SLURM_NODEID": str(rank),
        },
        **{"SLURM_PROCID": str(2 * rank + local), "SLURM_LOCALID": str(local)},
        **{"SLURM_NODELIST": ",".join(one.address for one in hosts), "MASTER_PORT": str(port)},
    }


Environment = Callable[[Sequence[Host], int, int, int], dict[str, str]]


def start(
    hosts: Sequence[Host], environment: Environment, run: Callable[..., Any], *arguments: Any
) -> list[ForkProcess]:
    """Starts two processes on each host, with the same command.

    Args:
        hosts: The hosts.
        environment: What starts them: ``torchrun`` or ``slurm``.
        run: What each runs.
        arguments: Its arguments.

    Returns:
        The processes, by rank. What they print is in their host's folder, by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(host: Host, local: int) -> None:
        torch.set_num_threads(1)
        host.enter()
        output = os.open(f"log{2 * host.rank + local}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # in place of what pytest captures
        sys.stdout, sys.stderr = (os.fdopen(one, "w", buffering=1) for one in (1, 2))
        warnings.simplefilter("default")  # as a command of its own
        os.environ |= environment(hosts, port, host.rank, local)
        run(*arguments)

    context = multiprocessing.get_context("fork")
    made = [context.Process(target=one, args=(host, local)) for host in hosts for local in (0, 1)]
    for process in made:
        process.start()
    return made


def logs(hosts: Sequence[Host]) -> str:
    """What all processes have printed."""
    files = [file for host in hosts for file in sorted(host.folder.glob("log*"))]
    return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files)
