"""Where the files are of what travels with a model: its tokenizer, or its image processor."""

from pathlib import Path

from fmerge.store.adapters import is_adapter
from fmerge.store.sources import base_folder
from fmerge.system.paths import expand


def part_folder(source: str, *patterns: str) -> str:
    """Finds the folder of what travels with a model, such as its tokenizer.

    Args:
        source: A Hugging Face folder, a hub id, ``package:name/folder``, or an adapter's folder.
        patterns: Its files, of which an adapter may be saved with some of its own.

    Returns:
        The adapter's folder where that has one; else as ``base_folder``.
    """
    own = is_adapter(source) and holds(expand(source), *patterns)
    return expand(source) if own else base_folder(source)


def holds(folder: str, *patterns: str) -> bool:
    """Tells whether a folder holds one of some files.

    Args:
        folder: The folder.
        patterns: Names, or patterns of them.

    Returns:
        Whether there is one.
    """
    return any(path.is_file() for pattern in patterns for path in Path(folder).glob(pattern))
