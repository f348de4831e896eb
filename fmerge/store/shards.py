"""Writes a model's weights tensor by tensor, in shards whose headers are known beforehand."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.params import Params
from fmerge.store.atomic import write_text
from fmerge.store.tensor_files import DTYPES

INDEX: Final = "model.safetensors.index.json"
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_ORDER: Final = (
    *("I64", "F64", "F32", "I32", "BF16", "F16", "I16"),
    *("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)
"""The order of dtypes in a file, by which safetensors aligns all tensors."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor is to be written.

    Attributes:
        file: The shard.
        offset: The first byte.
        dtype: The dtype.
        size: The number of bytes.
    """

    file: str
    offset: int
    dtype: torch.dtype
    size: int


@dataclass(frozen=True)
class ShardPlan:
    """The files of a model's weights before any of them is written.

    Attributes:
        headers: File name to the bytes before the tensors.
        slots: Tensor name to its place.
        index: The content of the index; empty where there is one file.
    """

    headers: Mapping[str, bytes]
    slots: Mapping[str, Slot]
    index: str = ""

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """File name to its size in bytes."""
        sizes = {name: len(header) for name, header in self.headers.items()}
        for slot in self.slots.values():
            sizes[slot.file] = max(sizes[slot.file], slot.offset + slot.size)
        return sizes


def plan_shards(tensors: Params, most: int | None, count: int) -> ShardPlan:
    """Plans the files that ``save_pretrained`` would write.

    Args:
        tensors: Names to tensors of the dtypes to be written, which need no data.
        most: The most bytes of a shard; transformers' own bound where it is None.
        count: The number of the model's parameters, which the index tells.

    Returns:
        The plan.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers import PreTrainedModel

    usual = signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default
    meta = {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta")
        for name, one in tensors.items()
    }
    split = split_torch_state_dict_into_shards(
        meta, filename_pattern="model{suffix}.safetensors", max_shard_size=most or usual
    )
    headers: dict[str, bytes] = {}
    slots: dict[str, Slot] = {}
    for file, names in split.filename_to_tensors.items():
        headers[file], inside = _layout(file, {name: meta[name] for name in names})
        slots |= inside
    if not split.is_sharded:
        return ShardPlan(headers, slots)
    index = {
        "metadata": {"total_parameters": count, **split.metadata},
        "weight_map": split.tensor_to_filename,
    }
    return ShardPlan(headers, slots, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _layout(file: str, tensors: Params) -> tuple[bytes, dict[str, Slot]]:
    """The header of a safetensors file, and the places of its tensors."""
    ordered = sorted(tensors, key=lambda name: (_ORDER.index(_NAMES[tensors[name].dtype]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, places = 0, {}
    for name in ordered:
        one, begin = tensors[name], end
        end += one.numel() * one.dtype.itemsize
        places[name] = begin, end
        header[name] = {
            "dtype": _NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text
    slots = {
        name: Slot(file, len(whole) + begin, tensors[name].dtype, end - begin)
        for name, (begin, end) in places.items()
    }
    return whole, slots


class ShardWriter:
    """Writes tensors into the files of a plan, in any order.

    Args:
        folder: Where the files are.
        plan: Their layout.
    """

    def __init__(self, folder: Path, plan: ShardPlan) -> None:
        self.folder = folder
        self.plan = plan
        self._files: dict[str, int] = {}

    def open(self) -> None:
        """Makes the files, of their final sizes, or opens those that an interrupted run left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, header in self.plan.headers.items():
            file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
            self._files[name] = file
            # the place is taken now, so that the disk cannot be full in the middle of the merge
            os.posix_fallocate(file, 0, self.plan.sizes[name])
            os.pwrite(file, header, 0)
        if self.plan.index:
            write_text(self.folder / INDEX, self.plan.index)

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor.

        Args:
            name: Its name in the plan.
            tensor: The tensor, of the planned shape and dtype.

        Raises:
            UserError: If the disk takes less than all of it.
        """
        slot = self.plan.slots[name]
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        view, done = memoryview(flat.numpy()), 0  # type: ignore[arg-type]
        while done < slot.size:
            count = os.pwrite(self._files[slot.file], view[done:], slot.offset + done)
            if not count:
                raise UserError(f"{self.folder / slot.file}: the disk takes no more bytes")
            done += count

    def sync(self) -> None:
        """Waits until what was written is on the disk."""
        for file in self._files.values():
            os.fdatasync(file)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            os.close(file)
        self._files = {}
