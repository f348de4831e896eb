"""A merge tensor by tensor: read, merged, and written while the next is read."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmerge.errors import UserError
from fmerge.merging.experts import Ensemble
from fmerge.merging.outputs import Output
from fmerge.merging.stream_pass import Found, Pass
from fmerge.methods import MergeMethod
from fmerge.store import Dtype, check_dtype, explaining


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """The experts of a merge in their files, and the models to be written.

    Attributes:
        ensemble: The experts, of headers and buffers alone.
        method: The formula.
        outputs: The models to be written.
        fishers: Expert to the file of its Fisher.
        dtypes: The dtypes of the merged tensors by name.
    """

    ensemble: Ensemble
    method: MergeMethod
    outputs: Sequence[Output]
    fishers: Mapping[str, Path]
    dtypes: Mapping[str, torch.dtype]

    @property
    def bytes(self) -> int:
        """How many bytes the merged models have."""
        return sum(size for one in self.outputs for size in one.plan.sizes.values())

    def files(self) -> dict[str, Any]:
        """Tells files from others of the same names, without reading them.

        Returns:
            Model to file to its size in bytes and the time of its last change.
        """
        given = {**self.ensemble.places, "base": self.ensemble.base_places}
        found: dict[str, Any] = {}
        for model, places in given.items():
            paths = {one.file for one in places.values()}
            if model in self.fishers:
                paths.add(self.fishers[model])
            stats = {str(path): path.stat() for path in sorted(paths)}
            found[model] = {path: [one.st_size, one.st_mtime_ns] for path, one in stats.items()}
        return found

    def check_dtype(self, dtype: Dtype | None) -> None:
        """Refuses a dtype whose range the numbers of an expert exceed.

        Args:
            dtype: What was asked for, if anything.
        """
        if dtype is None:
            return
        most = torch.finfo(getattr(torch, dtype)).max
        for expert, places in self.ensemble.places.items():
            for name, place in places.items():
                if torch.finfo(place.dtype).max > most:
                    check_dtype(dtype, {self.ensemble.sources[expert]: {name: place.read()}})

    def check_room(self, folder: Path) -> None:
        """Refuses a disk that is too full, before anything is written.

        Args:
            folder: Where the merged models will be.

        Raises:
            UserError: If they do not fit.
        """
        place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        free = shutil.disk_usage(place).free
        held = sum(one.stat().st_blocks * 512 for one in folder.rglob("*.safetensors"))
        if self.bytes > free + held:
            raise UserError(
                f"--output {folder.parent}: the merged models take {self.bytes / 1e9:.1f} GB, but "
                f"the disk has {free / 1e9:.1f} GB free; free space, or name a place on another"
            )

    def merge(
        self, coefficients: Mapping[str, float], folder: Path, stop: Callable[[], int]
    ) -> Found:
        """Merges and writes all tensors, or those that an interrupted run has left.

        Args:
            coefficients: λ by expert, and the method's numbers.
            folder: Where the files are written; each output has a folder in it by its position.
            stop: Tells the number of the signal that asked to stop, or 0.

        Returns:
            What was found on the way.

        Raises:
            UserError: If numbers cannot be merged; nothing of the merge is then left.
        """
        # one thread each: hashes take the tensors in order
        with (
            ThreadPoolExecutor(1) as reader,
            ThreadPoolExecutor(1) as hasher,
            ThreadPoolExecutor(1) as writer,
            explaining(folder),
        ):
            try:
                return Pass(self, coefficients, folder, reader, hasher, writer).run(stop)
            except UserError:  # what cannot be merged is not resumed, unlike after a full disk
                shutil.rmtree(folder, ignore_errors=True)
                raise
