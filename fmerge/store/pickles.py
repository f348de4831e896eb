"""Pickled files, ``.ckpt`` and ``.bin``: read as tensors and plain values, never run."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from fmerge.errors import UserError


def load_plain(path: Path) -> Any:
    """Reads what ``torch.save`` wrote, on the CPU, running nothing that is in it.

    Args:
        path: The file.

    Returns:
        Its content: tensors and plain values in dictionaries and lists.

    Raises:
        UserError: If it is missing, no regular file, damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        # tensors of a zip file stay in it, so that none can claim more than the file holds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the protocols of files that are refused
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise UserError(
            f"{path}: refused, as it is damaged or holds more than tensors and plain values; "
            "nothing in it was run; save the weights as .safetensors"
        ) from error
