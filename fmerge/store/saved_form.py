"""How a model is stored: each tensor's dtype, the size of its shards, the folder of its files."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Final, Literal

import torch

from fmerge.errors import UserError
from fmerge.params import Params
from fmerge.store.adapter_saving import SavedAdapter
from fmerge.store.adapters import is_adapter, read_adapter
from fmerge.store.folders import Header, has_weights, header_of, weight_files
from fmerge.store.side_files import hub_folder
from fmerge.store.sources import is_lightning, load_lightning, package_folder
from fmerge.store.states import read_state

Dtype = Literal["float32", "bfloat16", "float16"]
"""What the weights of a merge can be written in."""

_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_STATES: Final = {".pt", ".pth", ".bin", ".safetensors"}
_BYTES: Final = {"F64": 8, "F32": 4, "I64": 8, "F16": 2, "BF16": 2}
_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class SavedForm:
    """How a model is written.

    Attributes:
        dtypes: The dtype of each tensor, by its name; of others the commonest. Empty: as it is.
        shard_bytes: The most bytes of a shard; None for one file, up to transformers' own bound.
        folder: The folder whose side files the model gets, if there is one.
        written: The folder that holds its weights already, if there is one: the live model then
            has none, and only tells what goes with them.
        adapter: What is written of the model, if it is written as an adapter of its base.
    """

    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    shard_bytes: int | None = None
    folder: Path | None = None
    written: Path | None = None
    adapter: SavedAdapter | None = None

    def dtype_of(self, name: str, otherwise: torch.dtype = torch.float32) -> torch.dtype:
        """Finds a tensor's dtype.

        Args:
            name: Its name in the model; a file of a body alone lacks the body's prefix.
            otherwise: The dtype where none is known of any tensor.

        Returns:
            The tensor's, or the commonest where the files name it otherwise.
        """
        for key in (name, name.partition(".")[2]):
            if key in self.dtypes:
                return self.dtypes[key]
        counts = Counter(self.dtypes.values())
        return counts.most_common(1)[0][0] if counts else otherwise


def form_of(source: str, task: str = "") -> SavedForm:
    """Reads from headers how a model is stored.

    Args:
        source: A Hugging Face folder, a hub id, ``package:name/folder``, a Lightning ``.ckpt`` or
            an adapter, whose form is that of its base.
        task: Which of the models in a checkpoint of a fit.

    Returns:
        Its form. float64 is given as float32, the precision that models are read in.
    """
    if is_lightning(source):
        found = load_lightning(Path(source))
        base = found.get("hyper_parameters", {}).get("path")
        folder = form_of(base).folder if isinstance(base, str) and base else None
        return SavedForm(_of_task(found["state_dict"], task), None, folder)
    if is_adapter(source):
        return form_of(read_adapter(source).base)
    place = Path(package_folder(source))
    if place.suffix in _STATES and place.is_file():  # of a module of one's own
        return SavedForm({name: _stored(one.dtype) for name, one in read_state(source).items()})
    folder = place if place.is_dir() else hub_folder(source)
    # a module of one's own may read files of another kind
    if folder is None or not has_weights(folder):
        return SavedForm(folder=folder)
    headers = [header_of(file) for file in weight_files(folder)]
    kinds = {name: kind for one in headers for name, (kind, _) in one.items()}
    dtypes = {name: _DTYPES.get(kind, torch.float32) for name, kind in kinds.items()}
    return SavedForm(dtypes, _shard_bytes(headers), folder)


def merged_dtypes(
    forms: Sequence[SavedForm], names: Sequence[str], dtype: Dtype | None = None
) -> dict[str, torch.dtype]:
    """Chooses the dtypes of a merge.

    Args:
        forms: Those of the experts.
        names: The tensors.
        dtype: The dtype of all tensors, where it is given.

    Returns:
        Each tensor's dtype: the narrowest that holds the numbers of all experts.
    """
    if dtype is not None:
        return dict.fromkeys(names, getattr(torch, dtype))
    return {name: reduce(torch.promote_types, (f.dtype_of(name) for f in forms)) for name in names}


def check_dtype(dtype: str | None, tensors: Mapping[str, Params]) -> None:
    """Refuses a dtype that does not exist here, or whose range some tensors exceed.

    Args:
        dtype: What was asked for, if anything.
        tensors: Where the tensors are from, to the tensors.

    Raises:
        UserError: If it is no dtype of a merge, or a number would become infinite.
    """
    if dtype is None:
        return
    if dtype not in (known := [str(one).removeprefix("torch.") for one in _DTYPES.values()]):
        raise UserError(f"--dtype: is {dtype!r}, but must be one of {', '.join(sorted(known))}")
    most = torch.finfo(getattr(torch, dtype)).max
    for source, params in tensors.items():
        for name, tensor in params.items():
            if tensor.numel() and float(largest := tensor.abs().max()) > most:
                raise UserError(
                    f"--dtype: {dtype} holds numbers up to {most:g}, but tensor '{name}' of "
                    f"{source} has {float(largest):g}; use bfloat16 or float32"
                )


def parse_size(size: int | str | None) -> int | None:
    """Reads a size of ``--max_shard_size``.

    Args:
        size: Bytes, or a number with KB, MB, GB or TB; None where it is not given.

    Returns:
        Bytes.

    Raises:
        UserError: If it is no size.
    """
    if size is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]B|)", str(size).strip().upper())
    number = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if number < 1:
        raise UserError(
            f"--max_shard_size: is {size!r}, but must be a number of bytes or a size such as 5GB"
        )
    return number


def _of_task(state: Params, task: str) -> dict[str, torch.dtype]:
    return {
        name.removeprefix(prefix): _stored(tensor.dtype)
        for name, tensor in state.items()
        for prefix in (f"models.{task}.", "model.")
        if name.startswith(prefix)
    }


def _stored(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in _DTYPES.values() else torch.float32


def _shard_bytes(headers: Sequence[Header]) -> int | None:
    """The size that would give these shards again; None of one file."""
    if len(headers) < 2:
        return None
    # a tensor larger than the bound is alone in its shard, which then does not tell the bound
    bounded = [one for one in headers if len(one) > 1] or headers
    return max(
        sum(_BYTES.get(kind, 4) * math.prod(shape) for kind, shape in one.values())
        for one in bounded
    )
