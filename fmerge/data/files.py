"""A task from your own CSV, JSON lines or Parquet files."""

from collections.abc import Sequence
from functools import cached_property

from fmerge.data.examples import Example, Split, TaskData
from fmerge.data.label_names import LabelNumbers, class_names, read_label
from fmerge.data.tables import Files, Row, find_files, read_table
from fmerge.errors import UserError


class TextFiles(TaskData):
    """A classification task from files with one example a row.

    Cells are read as they stand in the file: no word means null, and a number is its text. In CSV
    an empty cell is a missing one.

    Args:
        train: Training examples: a .csv, .tsv, .json, .jsonl or .parquet file, a pattern such as
            train-*.parquet, or a list of them.
        validation: Validation examples, which choose checkpoints and coefficients.
        test: Test examples, which score the result.
        text: Column of the text.
        text_pair: Column of the second text, for tasks on pairs.
        label: Column of the class: its name, or its number.
        labels: Names of the classes in the order of the experts' label numbers. When left out, the
            names that occur in the files, sorted: whole numbers as numbers, others as text.
    """

    def __init__(
        self,
        train: Files | None = None,
        validation: Files | None = None,
        test: Files | None = None,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
        labels: list[str] | None = None,
    ) -> None:
        given = {"train": train, "validation": validation, "test": test}
        self._files = {split: find_files(files) for split, files in given.items() if files}
        self._texts = {"text": text} | ({"text_pair": text_pair} if text_pair else {})
        self._label = label
        self._given = None if labels is None else LabelNumbers([str(name) for name in labels])

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the label numbers."""
        return self._numbers.names

    def has(self, split: Split) -> bool:
        """Tells whether there are files for a split.

        Args:
            split: Which one.

        Returns:
            Whether it was given.
        """
        return split in self._files

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text``, ``text_pair`` where there is one, and ``label``.

        Raises:
            UserError: If there is no file for the split, a label is unknown, or a cell is missing.
        """
        if split not in self._files:
            raise UserError(f"TextFiles: no file is given for the {split} split; set {split}")
        return [
            {**texts, "label": self._numbers.number(label, row, self._label)}
            for row, texts, label in self._rows[split]
        ]

    def _read_texts(self, row: Row) -> dict[str, str]:
        texts = {key: row.text(column) for key, column in self._texts.items()}
        if not any(one.strip() for one in texts.values()):
            raise UserError(
                f"{row.at(self._texts['text'])}: is empty; give it a text, or remove the row"
            )
        return texts

    @cached_property
    def _numbers(self) -> LabelNumbers:
        if self._given is not None:
            return self._given
        pairs = ((label, row) for rows in self._rows.values() for row, _, label in rows)
        return LabelNumbers(class_names(pairs, self._label))

    @cached_property
    def _rows(self) -> dict[str, list[tuple[Row, dict[str, str], str]]]:
        """The rows of every split, with their texts and the names of their labels."""
        # all splits at once: a bad row of the test split is said before a fit, not after it
        return {split: self._read(split) for split in self._files}

    def _read(self, split: str) -> list[tuple[Row, dict[str, str], str]]:
        columns = [*self._texts.values(), self._label]
        rows = [row for file in self._files[split] for row in read_table(file, columns, split)]
        if not rows:
            names = ", ".join(map(str, self._files[split]))
            raise UserError(f"{names}: holds no rows, but the {split} split needs some")
        return [(row, self._read_texts(row), read_label(row, self._label)) for row in rows]
