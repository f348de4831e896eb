"""Tensors that are kept for a whole run, where there is room for them."""

import os
import tempfile
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from fmerge.params import Params
from fmerge.store.atomic import explaining

RESERVE = 0.2
"""Share of a memory that is left to everything else: batches, merges, other programs."""

_GROUP = Path("/sys/fs/cgroup")

CACHED = "fisher_curve.safetensors"
"""What files are named after, for those that a kill leaves between making and mapping."""

Place = Literal["device", "cpu", "disk"]


class FisherCache:
    """Keeps sets of tensors on a device, in the main memory, or mapped from a disk.

    Each set goes to the first of the three that would have a fifth of itself left free. A set on
    disk is a file without a name: it is removed as soon as it is mapped, so that the system frees
    it with the process, however that ends.

    Args:
        folder: Where files are made, on a disk with room for all that is kept.
        device: The device on which the tensors are used.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device

    def keep(self, tensors: Params) -> Params:
        """Puts tensors away.

        Args:
            tensors: Names to tensors, on any device.

        Returns:
            The same values, to be read and not changed.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        place = self.place(size)
        if place == "disk":
            return self._mapped(tensors)
        device = self.device if place == "device" else torch.device("cpu")
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    def place(self, size: int) -> Place:
        """Decides where a set goes.

        Args:
            size: What it takes, in bytes.

        Returns:
            The first place with room for it.
        """
        if self.device.type == "cuda" and _fits(size, _on_cuda(self.device)):
            return "device"
        return "cpu" if _fits(size, in_main_memory()) else "disk"

    def _mapped(self, tensors: Params) -> Params:
        with explaining(self.folder / CACHED):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(f".{CACHED}", f".{CACHED}.", self.folder)
            os.close(handle)
            try:
                save_file({key: one.cpu().contiguous() for key, one in tensors.items()}, name)
                return load_file(name)  # mapped: read from the disk when an entry is used
            finally:
                Path(name).unlink()


def in_main_memory() -> tuple[int, int]:
    """Asks how much main memory this process can still get without swapping.

    Returns:
        Bytes that are available and bytes in all, by the system or, where that is less, by the
        limit of its control group, such as a container's or a batch job's.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known = {key: 1024 * int(rest.split()[0]) for key, rest in (r.split(":") for r in lines)}
        free, total = known["MemAvailable"], known["MemTotal"]
    except (OSError, KeyError):  # not Linux: pages that hold files count as taken there
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = (page * os.sysconf(f"SC_{one}_PAGES") for one in ("AVPHYS", "PHYS"))
    try:
        limit, used = (int((_GROUP / f"memory.{one}").read_text()) for one in ("max", "current"))
        rows = (line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no control groups, or no limit
        return free, total
    files = next((int(size) for key, size in rows if key == "inactive_file"), 0)
    rest = limit - used + files  # copies of files on disk make room when it is needed
    return (rest, limit) if rest < free else (free, total)


def _on_cuda(device: torch.device) -> tuple[int, int]:
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused, total


def _fits(size: int, memory: tuple[int, int]) -> bool:
    free, total = memory
    return free - size >= RESERVE * total
