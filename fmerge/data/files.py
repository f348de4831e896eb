"""A task from your own CSV, JSON lines or Parquet files."""

from abc import ABC
from collections.abc import Mapping, Sequence

from fmerge.data.answer_columns import Labels, answer_columns
from fmerge.data.labelled import Labelled, LabelledFiles
from fmerge.data.splits import GivenSplits
from fmerge.data.tables import Files, Row, find_files, read_table
from fmerge.errors import UserError


class FileTask(GivenSplits, ABC):
    """A task whose splits are files with one example a row.

    Args:
        given: Split to its files, where it has any.
    """

    def __init__(self, given: Mapping[str, Files | None]) -> None:
        self._files = {split: find_files(files) for split, files in given.items() if files}
        super().__init__(self._files)

    def read_rows(self, split: str, columns: Sequence[str]) -> list[Row]:
        """Reads the rows of a split.

        Args:
            split: Which one.
            columns: Columns that must be there.

        Returns:
            The rows, one at least.

        Raises:
            UserError: If there are none.
        """
        rows = [row for file in self._files[split] for row in read_table(file, columns, split)]
        if not rows:
            names = ", ".join(map(str, self._files[split]))
            raise UserError(f"{names}: holds no rows, but the {split} split needs some")
        return rows


class TextFiles(LabelledFiles, FileTask):
    """A task of classes, several labels or numbers, from files with one example a row.

    Cells are read as they stand in the file: no word means null, and a number is its text. In CSV
    an empty cell is a missing one.

    Args:
        train: Training examples: a .csv, .tsv, .json, .jsonl or .parquet file, a pattern such as
            train-*.parquet, or a list of them.
        validation: Validation examples, which choose checkpoints and coefficients.
        test: Test examples, which score the result.
        text: Column of the text.
        text_pair: Column of the second text, for tasks on pairs.
        label: Column of the class: its name, or its number. Where an example has any number of
            labels: a column of lists of names, or several columns, one for each label, of 0 or 1.
        labels: Names of the classes or labels in the order of the experts' outputs. When left out,
            the names that occur in the files, sorted: whole numbers as numbers, others as text.
            ``number``: the column holds numbers, and the task is a regression.
        separator: What stands between the labels of an example where a column holds their names
            in one text, such as ``;``. An empty cell of a CSV file has none.
        metrics: Metrics, whose mean is the score. When left out: accuracy of classes; micro_f1
            and average_precision of labels; pearson of numbers.
    """

    def __init__(
        self,
        train: Files | None = None,
        validation: Files | None = None,
        test: Files | None = None,
        text: str = "text",
        text_pair: str | None = None,
        label: str | list[str] = "label",
        labels: Labels | None = None,
        separator: str | None = None,
        metrics: list[str] | None = None,
    ) -> None:
        FileTask.__init__(self, {"train": train, "validation": validation, "test": test})
        self._texts = {"text": text} | ({"text_pair": text_pair} if text_pair else {})
        answers = answer_columns(label, labels, separator)
        LabelledFiles.__init__(self, list(self._files), answers, metrics)

    def rows(self, split: str) -> Sequence[Labelled]:
        """Reads the rows of a split.

        Args:
            split: Which one.

        Returns:
            Each row, and its example: ``text``, and ``text_pair`` where there is one.
        """
        columns = [*self._texts.values(), *self._answers.columns]
        return [(row, self._read_texts(row)) for row in self.read_rows(split, columns)]

    def _read_texts(self, row: Row) -> dict[str, str]:
        texts = {key: row.text(column) for key, column in self._texts.items()}
        if not any(one.strip() for one in texts.values()):
            raise UserError(
                f"{row.at(self._texts['text'])}: is empty; give it a text, or remove the row"
            )
        return texts
