"""How much memory a device has free: the one answer that the cache and the dry run share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")

# file names of control groups, version 2 and 1: limit, use, and the counter of file pages
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


class Memory(NamedTuple):
    """The memory of a device.

    Attributes:
        free: Bytes that this process can still get without swapping.
        total: Bytes in all.
    """

    free: int
    total: int


def free_memory(device: torch.device) -> Memory | None:
    """Asks how much memory a device has.

    Args:
        device: A CUDA device has memory of its own; any other one is taken to use main memory.

    Returns:
        Free and total bytes; None where the system does not say. Main memory is bounded by the
        tightest control group of this process, such as that of a container or a batch job.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # PyTorch's allocator holds blocks that no tensor uses, and gives them to the next one
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Memory(free + unused, total)
    machine = _machine()
    return min((one for one in (machine, *_control_groups()) if one is not None), default=None)


def _machine() -> Memory | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        sizes = {key: 1024 * int(rest.split()[0]) for key, rest in (r.split(":") for r in lines)}
        return Memory(sizes["MemAvailable"], sizes["MemTotal"])
    except (OSError, KeyError, ValueError):
        pass  # not Linux
    try:
        page, free, total = (
            os.sysconf(f"SC_{one}") for one in ("PAGE_SIZE", "AVPHYS_PAGES", "PHYS_PAGES")
        )
    except ValueError:  # macOS does not count free pages
        return None
    return Memory(page * free, page * total)


def _control_groups() -> Iterator[Memory]:
    """Yields the bound of each control group that this process is in."""
    for folder, (limit, used, files) in _group_folders():
        try:
            most = int((folder / limit).read_text())
            taken = int((folder / used).read_text())
            rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such folder, or "max": no limit
            continue
        # the kernel drops copies of files when a process needs their pages: they count as free
        cached = next((int(size) for key, size in rows if key == files), 0)
        yield Memory(most - taken + cached, most)


def _group_folders() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yields the folders of this process's control groups, from its own to the root's."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _GROUPS / "memory" if controllers else _GROUPS
        # a limit holds for all groups below it; a container sees its own group as the root
        for part in (Path(path), *Path(path).parents):
            yield root / part.relative_to("/"), _VERSION_1 if controllers else _VERSION_2
