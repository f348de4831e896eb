"""Checks of a Hugging Face folder before it is used: config, index, weights, tokenizer.

Only headers and small files are read here. Links to regular files are followed, as the hub's own
cache consists of them. Paths inside an index are refused, as they come with the download.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fmerge.errors import UserError
from fmerge.store.pickles import load_plain

MOST_JSON = 64 << 20
"""Largest config or index that is read, in bytes; the largest on the hub have a few million."""

_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", _INDICES[1])
"""The files that a folder's weights begin with, in the order in which transformers looks."""

_LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers",
           "encoder_layers", "decoder_layers")  # fmt: skip
_MOST_LAYERS = 256

Header = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor names to dtype, such as ``F32``, and shape."""


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file whose content must be an object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        UserError: If it is not a regular file, too large, not JSON, or not an object.
    """
    if not path.is_file():
        raise UserError(f"{path}: is no regular file")
    if (size := path.stat().st_size) > MOST_JSON:
        raise UserError(f"{path}: has {size} bytes, but {MOST_JSON} at most are read; get it again")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: is no JSON ({error}); get the file again") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise UserError(f"{path}: holds {kind}, but a JSON object is needed; get the file again")
    return found


def check_folder(folder: Path) -> None:
    """Refuses a folder whose config or tokenizer would run code or is not valid.

    Args:
        folder: A folder with a ``config.json``.

    Raises:
        UserError: If a file is damaged, asks for code of its own, or is quantized.
    """
    config = read_object(folder / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        found = config if name == "config.json" else read_object(path) if path.exists() else {}
        if found.get("auto_map"):
            raise UserError(
                f"{path}: asks for code of its own (auto_map), which fmerge never runs "
                "(trust_remote_code is not supported); use a model of an architecture that "
                "transformers has, or remove auto_map to read it with transformers' own class"
            )
    if config.get("quantization_config"):
        raise UserError(
            f"{folder / 'config.json'}: is of a quantized model (quantization_config), but a "
            "merge needs the weights themselves; give the model as it was before"
        )
    for name in ("num_attention_heads", "hidden_size", "vocab_size", *_LAYERS):
        value = config.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40
        # below 2**40: a larger number would end in an overflow deep inside transformers
        if value is not None and not whole:
            raise UserError(
                f"{folder / 'config.json'}: {name} is {str(value)[:40]}, but must be a positive "
                "whole number; get the file again"
            )


def check_weights(folder: Path, config: Mapping[str, Any]) -> Header:
    """Reads the headers of a folder's weights and compares them with its config.

    Args:
        folder: A folder with a ``config.json``.
        config: Its content.

    Returns:
        Every tensor's dtype and shape.

    Raises:
        UserError: If a file is missing, damaged, outside of the folder or would run code, or the
            config describes far more layers than there are tensors.
    """
    header: Header = {}
    files: dict[str, str] = {}
    for path in weight_files(folder):
        own = header_of(path)
        if twice := header.keys() & own.keys():
            raise UserError(
                f"{path}: holds tensor '{min(twice)}', which {files[min(twice)]} holds too; a "
                "shard is listed twice, or is of another model: get the folder again"
            )
        header |= own
        files |= dict.fromkeys(own, path.name)
    _check_index(folder, files)
    for name in _LAYERS:
        layers = config.get(name)
        if isinstance(layers, int) and layers > max(_MOST_LAYERS, len(header)):
            raise UserError(
                f"{folder / 'config.json'}: {name} is {layers}, but the weights hold only "
                f"{len(header)} tensors; the config belongs to another model"
            )
    return header


def _check_index(folder: Path, files: Mapping[str, str]) -> None:
    """Refuses an index that names a tensor where there is none."""
    found = _first_weights(folder)
    if found is None or found.name not in _INDICES:
        return
    named = read_object(found)["weight_map"]
    for name, file in named.items():
        if files.get(name) != file:
            raise UserError(
                f"{found}: names tensor '{name}' in {file}, which does not hold it; the index is "
                "of another model: get the folder again"
            )


def check_described(folder: Path, described: int, header: Header) -> None:
    """Refuses a config that describes far more weights than there are, before any are allocated.

    Args:
        folder: The folder, for the message.
        described: How many weights a model of this config has.
        header: Dtypes and shapes in the files.

    Raises:
        UserError: If the files hold less than half of them.
    """
    held = sum(math.prod(shape) for _, shape in header.values())
    # a factor of two: tied weights are described twice and held once
    if described > 2 * held + 10_000_000:  # new heads and new positions are small
        raise UserError(
            f"{folder / 'config.json'}: describes a model of {described} weights, but the files "
            f"beside it hold {held}; the config belongs to another model"
        )


def header_of(path: Path) -> Header:
    """Reads the header of a file of weights.

    Args:
        path: A ``.safetensors`` or ``.bin`` file.

    Returns:
        Every tensor's dtype and shape.
    """
    return safetensors_header(path) if path.suffix == ".safetensors" else _bin_header(path)


def safetensors_header(path: Path) -> Header:
    """Reads a safetensors file's header, which the library checks against the file's size.

    Args:
        path: The file.

    Returns:
        Every tensor's dtype and shape.

    Raises:
        UserError: If it is damaged or not a safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, or no regular file")
    try:
        # for PyTorch the file would be mapped writable, which the system counts as memory
        with safe_open(path, framework="numpy") as file:
            views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: (str(view.get_dtype()), tuple(view.get_shape()))
                for name, view in views.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); get the file again"
        ) from error


def is_float(kind: str) -> bool:
    """Tells whether a dtype is a floating-point one.

    Args:
        kind: The dtype, as a header names it.

    Returns:
        Whether it is.
    """
    return kind in _FLOATS


def weight_files(folder: Path) -> list[Path]:
    """Finds the files of a folder's weights.

    Args:
        folder: A Hugging Face folder.

    Returns:
        One file, or the shards that an index names.

    Raises:
        UserError: If there is none, or the index names files that are missing or elsewhere.
    """
    found = _first_weights(folder)
    if found is None:
        raise UserError(f"{folder}: cannot read its weights: it holds no {WEIGHTS[0]}")
    return _shards(found) if found.name in _INDICES else [found]


def has_weights(folder: Path) -> bool:
    """Tells whether a folder has files of weights.

    Args:
        folder: Any folder.

    Returns:
        Whether ``weight_files`` finds some.
    """
    return _first_weights(folder) is not None


def _first_weights(folder: Path) -> Path | None:
    # in the order in which transformers looks for them
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def _shards(index: Path) -> list[Path]:
    content = read_object(index)
    files = content.get("weight_map")
    if not isinstance(files, dict) or not isinstance(content.get("metadata"), dict) or not files:
        raise UserError(f"{index}: lacks 'weight_map' or 'metadata'; get the file again")
    ending = index.name.removesuffix(".index.json").rpartition(".")[2]
    for name in files.values():
        # "../x" or "/etc/x" would read files that are not part of the model
        plain = isinstance(name, str) and name == Path(name).name and "\\" not in name
        if not plain or not name.endswith(f".{ending}"):
            raise UserError(
                f"{index}: names the shard {str(name)[:80]!r}, but a shard is a .{ending} file in "
                "the same folder; get the model from a source you trust"
            )
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: names the shard '{name}', which is missing; get it too")
    return [index.parent / name for name in sorted(set(files.values()))]


def _bin_header(path: Path) -> Header:
    found = load_plain(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, but tensors by name are needed")
    kinds = {torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}
    header: Header = {}
    for name, tensor in found.items():
        if not hasattr(tensor, "is_floating_point") or not isinstance(name, str):
            raise UserError(f"{path}: '{str(name)[:80]}' is no tensor; save the weights alone")
        kind = kinds.get(tensor.dtype, "F32") if tensor.is_floating_point() else "I64"
        header[name] = (kind, tuple(tensor.shape))
    return header
