"""Unfinished work on disk: tensors, and what they belong to."""

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
        path: Where; what is there is replaced.
        belongs_to: Plain values that say of what work they are a part.
        tensors: Names to tensors, on any device.
    """
    with replacing_file(path) as temporary:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, temporary, metadata={_KEY: json.dumps(belongs_to, sort_keys=True)})


def remove_partial(path: Path) -> None:
    """Removes what is not needed any more, and what a kill left of its writing.

    Args:
        path: Where ``write_partial`` put it, if it did.
    """
    path.unlink(missing_ok=True)
    remove_leftovers(path)


def read_partial(path: Path, belongs_to: Mapping[str, Any]) -> Params | None:
    """Reads tensors back, if they belong to the same work.

    Args:
        path: Where ``write_partial`` put them.
        belongs_to: What work is being done now.

    Returns:
        Names to tensors; None where there is no such file, or where it belongs to other work,
        which is logged with the first difference.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if not _belongs(path, json.loads((file.metadata() or {}).get(_KEY, "{}")), belongs_to):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        _LOG.warning("%s: not readable (%s); beginning anew", path, error)
        return None


def begun_with(path: Path, belongs_to: Mapping[str, Any], key: str) -> Any:
    """Reads one thing that unfinished work was begun with, and this command leaves open.

    Args:
        path: Where ``write_partial`` put it, if it did.
        belongs_to: What work is being done now, without that thing.
        key: What is asked for.

    Returns:
        What ``write_partial`` was told; None where there is no such work.
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
    """Compares what a file says it is a part of, before its tensors are read; logs a difference."""
    if not isinstance(found, dict):
        _LOG.warning("%s: does not say what it is a part of; beginning anew", path)
        return False
    expected = json.loads(json.dumps(belongs_to))
    for key in {**expected, **found}:
        if expected.get(key) != found.get(key):
            _LOG.warning(
                "%s: is of other work (%s was %s, is %s); beginning anew",
                path, key, found.get(key), expected.get(key),
            )  # fmt: skip
            return False
    return True
