"""A task of tagged words: named entities, parts of speech."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fmerge.data.conll import CONLL, read_conll
from fmerge.data.examples import Example, Split, TaskData
from fmerge.data.hub import read_rows
from fmerge.data.label_names import LabelNumbers, in_order
from fmerge.data.tables import Files, Row, find_files, is_missing, read_table
from fmerge.errors import UserError
from fmerge.store import USUAL_METRICS, LabelNames
from fmerge.store.labels import plain_number

_ENTITY = re.compile(r"[BIESLU]-.+")
Tagged = tuple[Row, list[str], list[str]]
"""A row, its words, and their tags as they are written."""


class TagFiles(TaskData):
    """Words with a tag each, from files or a data set, for ``TokenClassifier``.

    Files with one example a row (.json, .jsonl, .parquet) have a column of lists of words and one
    of lists of tags. Files of columns (.conll, .conllu, .bio, .iob, .iob2, .txt, .tsv) have a word
    a line with its tag in another column, and a blank line between two sentences; comments
    (``# …``) and ``-DOCSTART-`` are skipped.

    Args:
        train: Training examples: a file, a pattern such as train-*.parquet, or a list of them; of
            a data set the name of its split.
        validation: Validation examples, likewise; they choose checkpoints and coefficients.
        test: Test examples, likewise; they score the result.
        source: A data set: a hub id, a folder of its layout, or one that ``save_to_disk`` wrote.
        name: Configuration of the data set.
        words: Column of the words.
        tags: Column of the tags: their names, or their numbers.
        word_column: Column of the word in files of columns, from 0; negative from the last.
            The first, in .conllu the second.
        tag_column: Column of the tag likewise. The last, in .conllu the fourth (UPOS).
        labels: Names of the tags in the order of the experts' outputs. When left out, those of
            the data set, or the names that occur, sorted.
        metrics: Metrics, whose mean is the score: ``entity_f1``, which is usual where tags are of
            entities (B-PER, I-PER, …), and ``token_accuracy``, which is usual elsewhere.
        token: Access token of the hub, for private data sets.
    """

    def __init__(
        self,
        train: Files | None = None,
        validation: Files | None = None,
        test: Files | None = None,
        source: str | None = None,
        name: str | None = None,
        words: str = "tokens",
        tags: str = "tags",
        word_column: int | None = None,
        tag_column: int | None = None,
        labels: list[str] | None = None,
        metrics: list[str] | None = None,
        token: str | None = None,
    ) -> None:
        given = {"train": train, "validation": validation, "test": test}
        self._splits: dict[str, Any] = {split: one for split, one in given.items() if one}
        self._source, self._name, self._token = source, name, token
        if source is None:
            self._splits = {
                split: find_files(files, _ENDINGS) for split, files in self._splits.items()
            }
        elif not self._splits:
            self._splits = {split: split for split in given}
        if wrong := next(
            (one for one in self._splits.values() if source and not isinstance(one, str)), None
        ):
            raise UserError(f"TagFiles: source is set, so that {wrong!r} must be a split's name")
        self._words, self._tags = words, tags
        self._columns = word_column, tag_column
        self._given = None if labels is None else LabelNumbers([str(one) for one in labels])
        self._metrics = metrics

    @property
    def labels(self) -> list[str]:
        """Names of the tags in the order of the outputs."""
        return self._names

    @cached_property
    def metrics(self) -> Sequence[str]:  # type: ignore[override]
        """Names of the metrics, whose mean is the score."""
        entities = any(_ENTITY.fullmatch(name) for name in self._names)
        return self._metrics or (("entity_f1",) if entities else USUAL_METRICS["tags"])

    def has(self, split: Split) -> bool:
        """Tells whether a split was given.

        Args:
            split: Which one.

        Returns:
            Whether it was given.
        """
        return split in self._splits

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``words``, ``text`` (the words joined by spaces) and ``label``, a tag's
            number for each word.

        Raises:
            UserError: If there is no such split, or a row is unfit.
        """
        if split not in self._splits:
            raise UserError(f"TagFiles: nothing is given for the {split} split; set {split}")
        return [
            {
                "words": words,
                "text": " ".join(words),
                "label": [self._numbers.number(tag, row, self._tags) for tag in tags],
            }
            for row, words, tags in self._rows[split]
        ]

    @cached_property
    def _numbers(self) -> LabelNumbers:
        return self._given or LabelNumbers(self._names)

    @cached_property
    def _names(self) -> LabelNames:
        if self._given is not None:
            return LabelNames(self._given.names, "tags")
        names = self._named
        if not names:
            found = {tag for rows in self._rows.values() for _, _, tags in rows for tag in tags}
            names = in_order(found)
        return LabelNames(LabelNumbers(names).names, "tags")

    @cached_property
    def _named(self) -> list[str]:
        """The names of the tags that a data set has."""
        if self._source is None:
            return []
        split = next(iter(self._splits.values()))
        feature = read_rows(self._source, split, self._name, [self._tags], self._token).features
        return list(getattr(getattr(feature[self._tags], "feature", None), "names", None) or [])

    @cached_property
    def _rows(self) -> dict[str, list[Tagged]]:
        """The rows of every split: a bad one of the test split is said before a fit."""
        return {split: self._read(split) for split in self._splits}

    def _read(self, split: str) -> list[Tagged]:
        rows = self._of_source(split) if self._source is not None else self._of_files(split)
        if not rows:
            raise UserError(f"TagFiles: its {split} split holds no rows; give it some")
        return [self._checked(row) for row in rows]

    def _of_source(self, split: str) -> list[Row]:
        columns = [self._words, self._tags]
        table = read_rows(str(self._source), self._splits[split], self._name, columns, self._token)
        path = Path(str(self._source)) / self._splits[split]
        found = table.select_columns(columns)
        return [Row(one, path, number) for number, one in enumerate(found, 1)]

    def _of_files(self, split: str) -> list[Row]:
        found: list[Row] = []
        for path in self._splits[split]:
            if path.suffix.lower() in CONLL:
                found += read_conll(path, self._words, self._tags, self._columns)
            else:
                found += read_table(path, [self._words, self._tags], split)
        return found

    def _checked(self, row: Row) -> Tagged:
        words, tags = self._list(row, self._words), self._list(row, self._tags)
        if len(words) != len(tags):
            raise UserError(
                f"{row.at(self._tags)}: has {len(tags)} tags for {len(words)} words; give each "
                "word one tag"
            )
        if not words:
            raise UserError(f"{row.at(self._words)}: has no words; remove the row")
        return row, words, [plain_number(tag) for tag in tags]

    def _list(self, row: Row, column: str) -> list[str]:
        value = row.values.get(column)
        if not isinstance(value, list):
            what = "is empty" if is_missing(value) else f"holds {type(value).__name__}"
            raise UserError(
                f"{row.at(column)}: {what}, but a list is needed, with one for each word"
            )
        for place, one in enumerate(value, 1):
            if not isinstance(one, str | int) or not str(one).strip():
                raise UserError(
                    f"{row.at(column)}: entry {place} is {one!r}, but must be a word or a tag"
                )
        return [str(one) for one in value]


_ENDINGS = (*CONLL, ".json", ".jsonl", ".parquet")
