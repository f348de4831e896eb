"""A task from your own CSV, JSON lines or Parquet files."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fmerge.data.examples import Example, Split, TaskData
from fmerge.data.hub import BUILDERS, read_rows
from fmerge.errors import UserError, known
from fmerge.system.paths import expand


class TextFiles(TaskData):
    """A classification task from files with one example a row.

    Args:
        train: Training examples: .csv, .json, .jsonl or .parquet.
        validation: Validation examples, which choose checkpoints and coefficients.
        test: Test examples, which score the result.
        text: Column of the text.
        text_pair: Column of the second text, for tasks on pairs.
        label: Column of the class: its name, or its number.
        labels: Names of the classes in the order of the experts' label numbers; the sorted names
            that occur in the files when left out.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
        labels: list[str] | None = None,
    ) -> None:
        paths = {"train": train, "validation": validation, "test": test}
        self._files = {split: Path(expand(path)) for split, path in paths.items() if path}
        self._columns = {"text": text, "label": label} | (
            {"text_pair": text_pair} if text_pair else {}
        )
        self._given = labels
        for path in self._files.values():
            if not path.is_file():
                raise UserError(f"{path}: no such file")
            if path.suffix not in BUILDERS:
                raise UserError(f"{path}: has an unknown ending; known: {known(BUILDERS)}")

    @cached_property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the label numbers."""
        if self._given is not None:
            return self._given
        return sorted({str(row["label"]) for rows in self._rows.values() for row in rows})

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text``, ``text_pair`` where there is one, and ``label``.

        Raises:
            UserError: If there is no file for the split, or a label is unknown.
        """
        if split not in self._files:
            raise UserError(f"TextFiles: no file is given for the {split} split; set {split}")
        return [{**row, "label": self._number(row["label"], split)} for row in self._rows[split]]

    def _number(self, value: Any, split: str) -> int:
        # a name comes first: the names themselves may be numbers, in another order
        if str(value) in self.labels:
            return self.labels.index(str(value))
        if isinstance(value, int) and 0 <= value < len(self.labels):
            return value
        raise UserError(
            f"{self._files[split]}: unknown label '{value}'; known: {known(self.labels)}"
        )

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, Any]]]:
        return {split: self._read(path) for split, path in self._files.items()}

    def _read(self, path: Path) -> list[dict[str, Any]]:
        table = read_rows(str(path), "train", columns=list(self._columns.values()))
        return [{key: row[name] for key, name in self._columns.items()} for row in table]
