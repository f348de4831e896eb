"""Fisher files: ``.safetensors`` or ``.h5``, with what they were computed from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fmerge.errors import UserError
from fmerge.params import Params, check_finite
from fmerge.store.atomic import replacing_file

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
        UserError: If the file is missing, of another kind, or holds a NaN, an infinity or a
            negative value.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such Fisher file; make it with 'fmerge fisher'")
    values, text = _read_h5(path) if path.suffix == ".h5" else _read_safetensors(path)
    if text is None:
        raise UserError(f"{path}: was not written by 'fmerge fisher': its provenance is missing")
    check_finite(values, str(path))
    for name, tensor in values.items():
        if (tensor < 0).any():
            raise UserError(f"{path}: tensor '{name}' has negative entries; a Fisher has none")
    provenance: dict[str, Any] = json.loads(text)
    return values, provenance


def _read_safetensors(path: Path) -> tuple[Params, str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _read_h5(path: Path) -> tuple[Params, str | None]:
    try:
        with _h5py(path).File(path, "r") as file:
            values = {name: torch.from_numpy(file[name][()]) for name in file}
            return values, file.attrs.get(_KEY)
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file ({error})") from error


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: .h5 needs h5py; run: pip install 'fmerge[hdf5]'") from error
    return h5py
