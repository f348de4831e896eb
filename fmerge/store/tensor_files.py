"""Tensors in files that are read one at a time, whenever they are asked for."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.params import Params
from fmerge.store.folders import safetensors_header, weight_files
from fmerge.store.pickles import load_plain

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes of safetensors that PyTorch has too, by their names in a header."""

_MOST_READ: Final = 1 << 30  # the system reads less than 2 GB at once


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: The file.
        dtype: Its dtype there.
        shape: Its shape.
        offset: Its first byte in the file.
        mapped: The tensor itself, where the file is a pickle that is mapped into memory.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0
    mapped: Tensor | None = None

    def read(self) -> Tensor:
        """Reads the tensor.

        Returns:
            A new tensor in memory of the process's own; of a pickle a view of the file.

        Raises:
            UserError: If the file has become shorter.
        """
        if self.mapped is not None:
            return self.mapped
        size = math.prod(self.shape) * self.dtype.itemsize
        buffer = torch.empty(size, dtype=torch.uint8)
        view, done = memoryview(buffer.numpy()), 0  # type: ignore[arg-type]
        # not mapped: pages of a mapping count as memory of the process until the system wants them
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while done < size:
                count = file.readinto(view[done : done + _MOST_READ])
                if not count:
                    raise UserError(f"{self.file}: ends within a tensor; get the file again")
                done += count
        return buffer.view(self.dtype).view(self.shape)


class StoredParams(Mapping[str, Tensor]):
    """Named tensors of which one at a time is in memory, the one that was read last.

    Args:
        places: Names to where the tensors lie, in the order that they are listed in.
    """

    def __init__(self, places: Mapping[str, StoredTensor]) -> None:
        self.places = places
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        """Reads a tensor, unless it is the last one."""
        if self._last is None or self._last[0] != name:
            self._last = None  # two large tensors are not in memory together
            self._last = name, self.places[name].read()
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self.places)

    def __len__(self) -> int:
        """Counts the tensors."""
        return len(self.places)

    def on_meta(self) -> Params:
        """Describes the tensors.

        Returns:
            Names to tensors without data.
        """
        return {
            name: torch.empty(one.shape, dtype=one.dtype, device="meta")
            for name, one in self.places.items()
        }


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a folder's weights.

    Args:
        folder: A Hugging Face folder.

    Returns:
        Names, as they are in the files, to places.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        found |= tensors_of(path) if path.suffix == ".safetensors" else _pickled(path)
    return found


def tensors_of(path: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a safetensors file.

    Args:
        path: The file.

    Returns:
        Names to places.

    Raises:
        UserError: If it is damaged, or holds a dtype that PyTorch lacks.
    """
    safetensors_header(path)  # the library checks it against the file's size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, one in header.items():
        if one["dtype"] not in DTYPES:
            raise UserError(
                f"{path}: tensor '{name}' is of kind {one['dtype']}, which PyTorch does not read; "
                "give the model as it was before quantization"
            )
    return {
        name: StoredTensor(
            path, DTYPES[one["dtype"]], tuple(one["shape"]), 8 + length + one["data_offsets"][0]
        )
        for name, one in header.items()
    }


def _pickled(path: Path) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(path, one.dtype, tuple(one.shape), mapped=one)
        for name, one in load_plain(path).items()
    }
