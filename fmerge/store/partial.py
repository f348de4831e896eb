"""Unfinished work on disk: tensors, and a description of the work that they belong to."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fmerge.params import Params
from fmerge.store.atomic import remove_leftovers, replacing_file

_KEY = "fmerge.unfinished"
_LOG = logging.getLogger(__name__)


def write_partial(path: Path, belongs_to: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors whole or not at all.

    Args:
        path: The file; an old one is replaced.
        belongs_to: Plain values that identify the work.
        tensors: Names to tensors, on any device.
    """
    with replacing_file(path) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={_KEY: json.dumps(belongs_to, sort_keys=True)})


def remove_partial(path: Path) -> None:
    """Removes unfinished work that is no longer needed, and temporary files of its writing.

    Args:
        path: The file, which may be absent.
    """
    path.unlink(missing_ok=True)
    remove_leftovers(path)


def read_partial(path: Path, belongs_to: Mapping[str, Any]) -> Params | None:
    """Reads tensors back, if they belong to the same work.

    Args:
        path: The file that ``write_partial`` wrote.
        belongs_to: Plain values that identify the present work.

    Returns:
        Names to tensors; None where there is no file, or where it belongs to other work, which is
        logged with the first difference.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if not _belongs(path, json.loads((file.metadata() or {}).get(_KEY, "{}")), belongs_to):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        # not refused: what it held can be computed again
        _LOG.warning("%s: not readable (%s); beginning anew", path, error)
        return None


def begun_with(path: Path, belongs_to: Mapping[str, Any], key: str) -> Any:
    """Reads a value that unfinished work was begun with and that this command leaves open.

    Such as the batch size, where it is to be found automatically: sums of whole batches can be
    resumed only in batches of the same size.

    Args:
        path: The file, which may be absent.
        belongs_to: Plain values that identify the present work, without that one.
        key: The value's name.

    Returns:
        The value; None where there is no such work.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get(_KEY, "{}"))
    except (SafetensorError, OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    value = found.pop(key, None)
    return value if found == json.loads(json.dumps(belongs_to)) else None


def _belongs(path: Path, found: Any, belongs_to: Mapping[str, Any]) -> bool:
    """Compares the work of a file with the present work; logs the first difference."""
    if not isinstance(found, dict):
        _LOG.warning("%s: does not say what it is a part of; beginning anew", path)
        return False
    # through JSON and back, as the file was: a tuple then equals its list
    expected = json.loads(json.dumps(belongs_to))
    for key in {**expected, **found}:
        if expected.get(key) != found.get(key):
            _LOG.warning(
                "%s: is of other work (%s was %s, is %s); beginning anew",
                path, key, found.get(key), expected.get(key),
            )  # fmt: skip
            return False
    return True
