"""A cache of Fishers for a whole run: on the device, in main memory or on disk."""

import os
import tempfile
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from fmerge.params import Params
from fmerge.store.atomic import explaining
from fmerge.system.memory import Memory, free_memory

RESERVE = 0.2
"""Share of a memory that stays free for everything else: batches, merges, other programs."""

CACHE_FILE = "fisher_curve.safetensors"
"""Part of the name of every file, by which a new run finds those that a killed one left."""

Place = Literal["device", "cpu", "disk"]


class FisherCache:
    """Caches sets of tensors on a device, in main memory, or in files mapped from a disk.

    Each set goes to the first of the three of which a fifth would stay free. A file is deleted as
    soon as it is mapped: the system frees its space when the process ends, in whatever way.

    Args:
        folder: Where files are made, on a disk with space for the whole cache.
        device: The device on which the tensors are used.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device

    def put(self, tensors: Params) -> Params:
        """Caches a set of tensors.

        Args:
            tensors: Names to tensors, on any device.

        Returns:
            The same values in the cache; they must not be changed.
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
            size: Its size in bytes.

        Returns:
            The first place with enough free memory.
        """
        if self.device.type == "cuda" and _fits(size, free_memory(self.device)):
            return "device"
        return "cpu" if _fits(size, free_memory(torch.device("cpu"))) else "disk"

    def _mapped(self, tensors: Params) -> Params:
        with explaining(self.folder / CACHE_FILE):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(f".{CACHE_FILE}", f".{CACHE_FILE}.", self.folder)
            os.close(handle)
            try:
                save_file({key: one.cpu().contiguous() for key, one in tensors.items()}, name)
                return load_file(name)  # maps the file: a page is read when an entry is used
            finally:
                # the mapping outlives the name: no kill after this line leaves a file behind
                Path(name).unlink()


def _fits(size: int, memory: Memory | None) -> bool:
    return memory is not None and memory.free - size >= RESERVE * memory.total
