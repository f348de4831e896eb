"""Rows of a data set: from the hub, a folder of its layout, or what `datasets` saved."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmerge.errors import UserError, known
from fmerge.store.hub import bound_retries
from fmerge.system.paths import expand

BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""Ending of a file to the builder of `datasets` that reads it."""


def read_rows(
    source: str,
    split: str,
    name: str | None = None,
    columns: Sequence[str] = (),
    token: str | None = None,
) -> Any:
    """Reads one split of a data set; no code that comes with it is run.

    Args:
        source: A hub id; a folder of the hub's layout; a folder that ``save_to_disk`` wrote, or
            one that holds such a folder under ``name``; or a .csv, .json, .jsonl or .parquet
            file, which is its only split, whatever ``split`` is.
        split: The data set's own name of the split.
        name: Which configuration of the data set, such as ``cola``.
        columns: Columns that must be there.
        token: Access token of the hub, for private data sets.

    Returns:
        A ``datasets.Dataset``.

    Raises:
        UserError: If the source cannot be read, or lacks the split or a column.
    """
    source = expand(source)
    where = f"{source}/{name}" if name else source
    table = _read(source, split, name, token, where)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise UserError(
            f"{where}: has no column '{missing[0]}'; its columns: {known(table.column_names)}"
        )
    return table


def _read(source: str, split: str, name: str | None, token: str | None, where: str) -> Any:
    import datasets

    bound_retries()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it raises as well
    path = Path(source)
    saved = next((one for one in (path / (name or ""), path) if _is_saved(one)), None)
    try:
        if saved is not None:
            return _of_split(datasets.load_from_disk(str(saved)), split, where)
        if path.suffix in BUILDERS and path.is_file():
            builder = BUILDERS[path.suffix]
            return datasets.load_dataset(builder, data_files=str(path), split="train")
        if path.is_absolute() and not path.is_dir():
            raise UserError(f"{source}: no such file or folder")
        cache = _cache_of(path) if path.is_dir() else None
        return datasets.load_dataset(source, name, split=split, token=token, cache_dir=cache)
    except UserError:
        raise
    except Exception as error:  # datasets raises many kinds, also those of pyarrow and httpx
        reason = " ".join(str(error.__cause__ or error).split())  # the cause says more
        raise UserError(f"{where}: cannot read its {split} split ({reason})") from error


def _cache_of(folder: Path) -> str:
    """Names a cache of the folder's own, as `datasets` takes folders of one name for the same."""
    import datasets

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    digest = hashlib.sha256(repr(states).encode()).hexdigest()
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"local-{digest[:32]}")


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _of_split(saved: Any, split: str, where: str) -> Any:
    if not isinstance(saved, dict):  # a single split was saved
        return saved
    if split not in saved:
        raise UserError(f"{where}: has no {split} split; its splits: {known(saved)}")
    return saved[split]
