"""Finds the tensors of an HDF5 file, in a process of its own: ``hdf5_layout.py FILE KEY``.

A damaged file can make libhdf5 crash or loop forever. In a process of its own that is harmless;
the calling process then reads the tensors' bytes itself.
"""

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

import h5py

SECONDS = 5
"""Most processor time, in seconds; a valid file takes less than one."""

_BYTES = 8 << 30  # of address space: Python, NumPy and libhdf5 reserve a good part of it


class NotPlainError(Exception):
    """A file that is not a flat list of plain tensors; the message says why."""


def layout(path: Path, key: str) -> dict[str, Any]:
    """Finds a file's tensors and its provenance.

    Args:
        path: The file.
        key: The attribute that holds the provenance.

    Returns:
        ``tensors``: name to offset in bytes, shape and dtype; ``provenance``: a text or None.

    Raises:
        NotPlainError: If anything in it is a link, not a floating-point tensor, stored in chunks,
            or claims more bytes than the file has.
    """
    size, claimed = path.stat().st_size, 0
    tensors: dict[str, tuple[int, tuple[int, ...], str]] = {}
    with h5py.File(path, "r") as file:
        for name in file:
            link = file.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):  # others point to other objects or files
                raise NotPlainError(_wrong(name, f"is a {type(link).__name__}"))
            one = file[name]
            _check_plain(name, one)
            stored, claims = one.id.get_storage_size(), math.prod(one.shape) * one.dtype.itemsize
            claimed += claims
            offset = one.id.get_offset() if claims else 0
            if claims > stored or claimed > size or offset is None or offset + claims > size:
                raise NotPlainError(
                    f"tensor '{name}' claims {claims} bytes of shape {one.shape}, but the file of "
                    f"{size} bytes holds {stored} of them; it is damaged or was not finished"
                )
            tensors[name] = offset, one.shape, one.dtype.str
        text = file.attrs.get(key)
    return {"tensors": tensors, "provenance": text if isinstance(text, str) else None}


def _check_plain(name: str, one: Any) -> None:
    if not isinstance(one, h5py.Dataset):
        raise NotPlainError(_wrong(name, f"is a {type(one).__name__}"))
    if one.is_virtual or one.external:
        raise NotPlainError(_wrong(name, "takes its values from other files"))
    if one.chunks is not None:
        raise NotPlainError(_wrong(name, "is chunked or compressed"))
    if one.shape is None or one.dtype.kind != "f" or one.dtype.itemsize not in {2, 4, 8}:
        raise NotPlainError(_wrong(name, f"is of kind {one.dtype}"))
    if not one.dtype.isnative:
        raise NotPlainError(_wrong(name, f"is of the other byte order ({one.dtype.str})"))


def _wrong(name: str, wrong: str) -> str:
    return (
        f"tensor '{name}' {wrong}, but a Fisher holds plain floating-point tensors; compute it "
        "with 'fmerge fisher'"
    )


def main() -> None:
    """Prints the layout as JSON, or ``{"error": ...}``."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    try:
        found = layout(Path(sys.argv[1]), sys.argv[2])
    except NotPlainError as error:
        found = {"error": str(error)}
    except Exception as error:  # h5py gives each kind of damage an exception of its own
        found = {"error": f"not a readable HDF5 file ({' '.join(str(error).split())[:300]})"}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
