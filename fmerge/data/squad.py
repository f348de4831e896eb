"""SQuAD 2: questions whose answers are spans of a paragraph, or that have no answer."""

from collections.abc import Mapping
from typing import Any, Literal

from fmerge.data.examples import Example
from fmerge.data.hub import read_rows
from fmerge.data.validation_as_test import TestFrom, ValidationAsTest
from fmerge.errors import UserError


class Squad2(ValidationAsTest):
    """Questions on paragraphs, with or without an answer in them, for ``SpanAnswers``.

    The test split is hidden, so the test examples are taken from the validation split. Where
    annotators gave several answers, the first one counts.

    Args:
        source: Hub id; a folder of its layout; or a folder that ``save_to_disk`` wrote.
        test: half: the validation split is halved at random, and one half is the test split;
            validation: the whole validation split is the test split too.
        train: Most training examples, chosen at random; all if left out.
        validation: Most validation examples, likewise; test examples are not limited.
        seed: Seed of these choices.
        token: Access token of the hub, for private copies.
    """

    def __init__(
        self,
        source: str = "rajpurkar/squad_v2",
        test: TestFrom = "half",
        train: int | None = None,
        validation: int | None = None,
        seed: int = 0,
        token: str | None = None,
    ) -> None:
        super().__init__(test, train, validation, seed)
        self.source = source
        self.token = token

    @property
    def labels(self) -> list[str]:
        """Empty: the answers are spans of each example's own text."""
        return []

    def read(self, split: Literal["train", "validation"]) -> list[Example]:
        """Reads all examples of a split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text`` (the question), ``text_pair`` (the paragraph) and ``label``,
            the answer's first and last character in the paragraph; (-1, -1) for none.
        """
        columns = ["question", "context", "answers"]
        table = read_rows(self.source, split, columns=columns, token=self.token)
        return [
            self._example(row, f"{self.source}: its {split} split, row {i}")
            for i, row in enumerate(table.select_columns(columns))
        ]

    def _example(self, row: Mapping[str, Any], where: str) -> Example:
        for column, value in row.items():
            if value is None:
                raise UserError(f"{where}: its '{column}' is missing")
        answers = row["answers"]
        return {
            "text": row["question"],
            "text_pair": row["context"],
            "label": _span(answers["text"], answers["answer_start"]),
        }


def _span(texts: list[str], starts: list[int]) -> tuple[int, int]:
    if not texts or not texts[0]:
        return -1, -1
    return starts[0], starts[0] + len(texts[0]) - 1
