"""Fisher files: ``.safetensors`` or ``.h5``, with what they were computed from."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fmerge.errors import UserError
from fmerge.params import Params, check_finite
from fmerge.store.atomic import replacing_file
from fmerge.store.folders import safetensors_header

SUFFIXES = (".safetensors", ".h5")
_KEY = "fmerge.fisher"


def check_fisher_path(path: Path) -> None:
    """Proves that a Fisher can be written under this name here.

    Args:
        path: Where it shall be.

    Raises:
        UserError: If the ending is unknown, or it is ``.h5`` and h5py is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output {path}: must end in {' or '.join(SUFFIXES)}")
    if path.suffix == ".h5":
        _h5py(path)


def write_fisher(path: Path, values: Params, provenance: dict[str, Any]) -> None:
    """Writes a diagonal Fisher.

    Args:
        path: Ends in ``.safetensors`` or ``.h5``.
        values: F by parameter name.
        provenance: Plain values: model hash, task, split, examples, estimator, seed.
    """
    text = json.dumps(provenance)
    with replacing_file(path) as temporary:
        if path.suffix == ".h5":
            with _h5py(path).File(temporary, "w") as file:
                file.attrs[_KEY] = text
                for name, tensor in values.items():
                    file.create_dataset(name, data=tensor.numpy())
        else:
            contiguous = {name: tensor.contiguous() for name, tensor in values.items()}
            save_file(contiguous, temporary, metadata={_KEY: text, "format": "pt"})


def read_fisher(path: Path) -> tuple[Params, dict[str, Any]]:
    """Reads a diagonal Fisher.

    Args:
        path: A file that ``write_fisher`` wrote.

    Returns:
        F by parameter name, and its provenance.

    Raises:
        UserError: If the file is missing, damaged, of another kind, or holds a NaN, an infinity,
            a negative value or nothing but zeros.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such Fisher file; make it with 'fmerge fisher'")
    values, text = _read_h5(path) if path.suffix == ".h5" else _read_safetensors(path)
    provenance = _provenance(path, text)
    check_finite(values, str(path))
    for name, tensor in values.items():
        if (tensor < 0).any():
            raise UserError(f"{path}: tensor '{name}' has negative entries; a Fisher has none")
    if not any(tensor.any() for tensor in values.values()):
        raise UserError(
            f"{path}: holds nothing but zeros, by which no expert can be weighted; compute it "
            "again with 'fmerge fisher', from a model whose answers depend on its weights"
        )
    return values, provenance


def _provenance(path: Path, text: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        raise UserError(f"{path}: was not written by 'fmerge fisher': its provenance is missing")
    try:
        provenance = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its provenance is no JSON ({error}); it is damaged") from error
    if not isinstance(provenance, dict):
        raise UserError(f"{path}: its provenance is no JSON object; it is damaged")
    return provenance


def _read_safetensors(path: Path) -> tuple[Params, Any]:
    for name, (kind, _) in safetensors_header(path).items():
        if kind not in {"F16", "BF16", "F32", "F64"}:
            raise _no_fisher(path, name, f"is of kind {kind}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _read_h5(path: Path) -> tuple[Params, Any]:
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as file:
            _check_h5(h5py, path, file)
            values = {name: torch.from_numpy(file[name][()]) for name in file}
            return values, file.attrs.get(_KEY)
    except UserError:
        raise
    except Exception as error:  # h5py gives each kind of damage an exception of its own
        raise UserError(f"{path}: not a readable HDF5 file ({error})") from error


def _check_h5(h5py: Any, path: Path, file: Any) -> None:
    """Proves, before anything gets memory, that a file is flat, plain and no more than its size."""
    size, claimed = path.stat().st_size, 0
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):  # soft and external links lead elsewhere
            raise _no_fisher(path, name, f"is a {type(link).__name__}")
        one = file[name]
        if not isinstance(one, h5py.Dataset):
            raise _no_fisher(path, name, f"is a {type(one).__name__}")
        if one.is_virtual or one.external:
            raise _no_fisher(path, name, "takes its values from other files")
        if one.chunks is not None:
            raise _no_fisher(path, name, "is chunked or compressed")
        if one.shape is None or one.dtype.kind != "f" or one.dtype.itemsize not in {2, 4, 8}:
            raise _no_fisher(path, name, f"is of kind {one.dtype}")
        if not one.dtype.isnative:
            raise _no_fisher(path, name, f"is of the other byte order ({one.dtype.str})")
        stored, claims = one.id.get_storage_size(), math.prod(one.shape) * one.dtype.itemsize
        claimed += claims
        if claims > stored or claimed > size:
            raise UserError(
                f"{path}: tensor '{name}' claims {claims} bytes of shape {one.shape}, but the "
                f"file of {size} bytes holds {stored} of them; it is damaged or was not finished"
            )


def _no_fisher(path: Path, name: str, wrong: str) -> UserError:
    return UserError(
        f"{path}: tensor '{name}' {wrong}, but a Fisher holds plain floating-point tensors; "
        "compute it with 'fmerge fisher'"
    )


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: .h5 needs h5py; run: pip install 'fmerge[hdf5]'") from error
    return h5py
