"""Fisher files, ``.safetensors`` or ``.h5``, with their provenance."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fmerge.errors import UserError
from fmerge.params import Params, check_finite
from fmerge.store.atomic import replacing_file
from fmerge.store.folders import safetensors_header
from fmerge.store.tensor_files import StoredTensor, tensors_of

SUFFIXES = (".safetensors", ".h5")
_KEY = "fmerge.fisher"
_SECONDS = 120  # to find the tensors of an HDF5 file, also on a busy machine


def check_fisher_path(path: Path) -> None:
    """Checks that a Fisher can be written under this name.

    Args:
        path: The file.

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
    check_fisher(path, values)
    return values, provenance


def stored_fisher(path: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a Fisher file, to be read one at a time.

    Args:
        path: A file that ``write_fisher`` wrote.

    Returns:
        Names to places.
    """
    if path.suffix == ".safetensors":
        return tensors_of(path)
    return {
        name: StoredTensor(path, _dtype_of(kind), tuple(shape), offset)
        for name, (offset, shape, kind) in _h5_layout(path)["tensors"].items()
    }


def _dtype_of(kind: str) -> torch.dtype:
    return torch.from_numpy(numpy.empty(0, kind)).dtype


def check_fisher(path: Path, values: Mapping[str, Tensor]) -> None:
    """Checks that tensors can weight experts.

    Args:
        path: Their source, for the message.
        values: F by parameter name.

    Raises:
        UserError: If one holds a NaN, an infinity or a negative value, or all are zero.
    """
    zeros = True
    for name, tensor in values.items():  # each is read once, as it may be large
        check_finite({name: tensor}, str(path))
        if (tensor < 0).any():
            raise UserError(f"{path}: tensor '{name}' has negative entries; a Fisher has none")
        zeros = zeros and not tensor.any()
    # zeros in some tensors are normal, as of words that the examples do not have
    if zeros:
        raise UserError(
            f"{path}: holds nothing but zeros, by which no expert can be weighted; compute it "
            "again with 'fmerge fisher', from a model whose answers depend on its weights"
        )


def read_fisher_header(path: Path) -> tuple[Params, dict[str, Any]]:
    """Reads the names, shapes and provenance of a Fisher file, and none of its values.

    Args:
        path: A file that ``write_fisher`` wrote.

    Returns:
        Tensors without data by parameter name, and the provenance.

    Raises:
        UserError: If the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such Fisher file; make it with 'fmerge fisher'")
    if path.suffix == ".h5":
        found = _h5_layout(path)
        shapes = {name: shape for name, (_, shape, _) in found["tensors"].items()}
        text = found["provenance"]
    else:
        shapes = _safetensors_shapes(path)
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
    values = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    return values, _provenance(path, text)


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


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    header = safetensors_header(path)
    for name, (kind, _) in header.items():
        if kind not in {"F16", "BF16", "F32", "F64"}:
            raise _no_fisher(path, name, f"is of kind {kind}")
    return {name: shape for name, (_, shape) in header.items()}


def _read_safetensors(path: Path) -> tuple[Params, Any]:
    _safetensors_shapes(path)  # refuses integers, which would be read without an error
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _read_h5(path: Path) -> tuple[Params, Any]:
    found = _h5_layout(path)
    return read_layout(path, found["tensors"]), found["provenance"]


def _h5_layout(path: Path) -> dict[str, Any]:
    _h5py(path)  # or an error that says how to install it
    script = Path(__file__).with_name("hdf5_layout.py")
    # -P: nothing is imported from the script's folder, whose modules have names like others'
    command = [sys.executable, "-P", str(script), str(path), _KEY]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise UserError(
            f"{path}: not a readable HDF5 file (reading it crashed or did not end); it is damaged"
        ) from error
    if "error" in found:
        wrong = str(found["error"])
        raise UserError(f"{path}: {wrong}")
    return dict(found)


def read_layout(path: Path, tensors: Mapping[str, Any]) -> Params:
    """Reads tensors whose offsets in a file are known.

    Args:
        path: The file.
        tensors: Names to offset in bytes, shape and NumPy's name of the dtype.

    Returns:
        Names to tensors.
    """
    values = {}
    with path.open("rb") as file:
        for name, (offset, shape, kind) in tensors.items():
            file.seek(offset)
            numbers = numpy.fromfile(file, kind, math.prod(shape))
            values[name] = torch.from_numpy(numbers.reshape(shape))
    return values


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
