"""Files of columns, as of the CoNLL shared tasks: a word a line, a blank line after a sentence."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fmerge.data.readers import decoded
from fmerge.data.tables import Row
from fmerge.errors import UserError

CONLL: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys((".conll", ".bio", ".iob", ".iob2", ".txt", ".tsv"), (0, -1)),
    ".conllu": (1, 3),
}
"""Ending of a file to its usual columns of words and tags."""


def read_conll(
    path: Path, words: str, tags: str, columns: tuple[int | None, int | None] = (None, None)
) -> list[Row]:
    """Reads a file of columns, separated by tabs where a line has one, else by white space.

    Args:
        path: The file.
        words: Name of the column of words in the rows.
        tags: Name of the column of tags.
        columns: Which columns these are in the file; the usual ones of its ending where None.

    Returns:
        A row for each sentence, with its words and tags as lists; its number is that of its first
        line.

    Raises:
        UserError: If a line lacks one of the columns.
    """
    usual = CONLL[path.suffix.lower()]
    chosen = [usual[k] if one is None else one for k, one in enumerate(columns)]
    found: list[Row] = []
    sentence: tuple[list[str], list[str]] = [], []
    first = 1
    lines = [*decoded(path).splitlines(), ""]
    for number, line in enumerate(lines, 1):
        cells = line.split("\t") if "\t" in line else line.split()
        if path.suffix.lower() == ".conllu" and re.match(r"\d+[-.]\d", cells[0] if cells else ""):
            continue  # a token over several words (1-2), or one that is not in the text (1.1)
        if not line.strip():
            if sentence[0]:
                found.append(Row(dict(zip((words, tags), sentence, strict=True)), path, first))
            sentence = [], []
        elif sentence[0] or not _is_skipped(line, lines[number], path):
            first = first if sentence[0] else number
            for column, own in zip(chosen, sentence, strict=True):
                if not -len(cells) <= column < len(cells) or len(cells) < 2:
                    raise UserError(
                        f"{path}, row {number}: has {len(cells)} columns, but the word is in "
                        f"column {chosen[0]} and its tag in column {chosen[1]}; set word_column "
                        "and tag_column"
                    )
                own.append(cells[column].strip())
    return found


def _is_skipped(line: str, following: str, path: Path) -> bool:
    """Whether the first line of a sentence is a comment, or begins a document."""
    if path.suffix.lower() == ".conllu":
        return line.startswith("#")
    # a word may be a hash too: it then has as many columns as the next word
    comment = line.startswith("# ") and len(line.split()) != len(following.split())
    return comment or line.startswith("-DOCSTART-")
