"""Pairs of texts that belong together: queries and their answers."""

from collections.abc import Sequence
from functools import cached_property

from fmerge.data.examples import Example, Split
from fmerge.data.files import FileTask
from fmerge.data.tables import Files
from fmerge.errors import UserError
from fmerge.store import USUAL_METRICS, LabelNames


class PairFiles(FileTask):
    """Pairs of texts without a score, for ``TextEmbedder``: a text finds its own other text.

    Args:
        train: Training examples: a .csv, .tsv, .json, .jsonl or .parquet file, a pattern such as
            train-*.parquet, or a list of them.
        validation: Validation examples, which choose checkpoints and coefficients.
        test: Test examples, which score the result.
        text: Column of the queries.
        text_pair: Column of their answers.
        metrics: ``recall_at_1``, ``recall_at_10`` or ``mrr``, whose mean is the score. Answers of
            all examples of a split are the candidates.
    """

    def __init__(
        self,
        train: Files | None = None,
        validation: Files | None = None,
        test: Files | None = None,
        text: str = "query",
        text_pair: str = "answer",
        metrics: list[str] | None = None,
    ) -> None:
        super().__init__({"train": train, "validation": validation, "test": test})
        self._columns = {"text": text, "text_pair": text_pair}
        self.metrics = metrics or USUAL_METRICS["matches"]

    @property
    def labels(self) -> list[str]:
        """Empty: the answers are other texts."""
        return LabelNames((), "matches")

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text`` and ``text_pair``.

        Raises:
            UserError: If there is no file for the split, or a text is missing.
        """
        self.check_given(split)
        return self._pairs[split]

    @cached_property
    def _pairs(self) -> dict[str, list[Example]]:
        return {split: self._read(split) for split in self._files}

    def _read(self, split: str) -> list[Example]:
        found: list[Example] = []
        for row in self.read_rows(split, list(self._columns.values())):
            pair = {key: row.text(column) for key, column in self._columns.items()}
            empty = next((key for key, text in pair.items() if not text.strip()), None)
            if empty is not None:
                place = row.at(self._columns[empty])
                raise UserError(f"{place}: is empty; give it a text, or remove the row")
            found.append(pair)
        return found
