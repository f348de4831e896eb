"""Pickled files, ``.ckpt`` and ``.bin``: only tensors and plain values are read, no code is run."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from fmerge.errors import UserError, known
from fmerge.system.paths import expand


def load_plain(path: Path) -> Any:
    """Reads a file of ``torch.save`` on the CPU, and runs no code in it.

    Args:
        path: The file.

    Returns:
        Its content: tensors and plain values in dictionaries and lists.

    Raises:
        UserError: If it is missing, not a regular file, damaged, or holds anything else.
    """
    path = Path(expand(path))
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        # the tensors of a zip file are mapped, so that none can claim more than the file holds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols of files that are refused
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise UserError(
            f"{path}: refused, as it is damaged or holds more than tensors and plain values"
            f"{_named(path)}; nothing in it was run; save the weights as .safetensors, or by "
            "torch.save(network.state_dict(), path)"
        ) from error


def _named(path: Path) -> str:
    """Names the classes and functions that a file would load."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no file of torch.save
        return ""
    return f" ({known(found[:5])})" if found else ""
