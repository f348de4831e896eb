"""Conversations and plain texts from your own files, for language models."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

from fmerge.data.examples import Example, Split
from fmerge.data.files import FileTask
from fmerge.data.tables import Files, Row
from fmerge.errors import UserError


class _FreeTexts(FileTask, ABC):
    """A task whose answers are free texts.

    Args:
        given: Split to its files, where it has any.
        metrics: Names of metrics; inverse_perplexity when None.
    """

    def __init__(self, given: Mapping[str, Files | None], metrics: list[str] | None) -> None:
        super().__init__(given)
        self.metrics = ("inverse_perplexity",) if metrics is None else metrics

    @property
    def labels(self) -> list[str]:
        """Empty: the answers are free."""
        return []


class Chats(_FreeTexts):
    """Conversations with one example a row, whose last message is the answer that is learned.

    A row has a list of messages, each with a ``role`` (system, user, assistant or another that the
    chat template knows) and its ``content``, as in the chat files of OpenAI and of TRL.

    Args:
        train: Training examples: a .json, .jsonl or .parquet file, a pattern such as
            train-*.jsonl, or a list of them.
        validation: Validation examples, which choose checkpoints and coefficients.
        test: Test examples, which score the result.
        messages: Column of the messages.
        metrics: Names of metrics; inverse_perplexity when left out.
    """

    def __init__(
        self,
        train: Files | None = None,
        validation: Files | None = None,
        test: Files | None = None,
        messages: str = "messages",
        metrics: list[str] | None = None,
    ) -> None:
        super().__init__({"train": train, "validation": validation, "test": test}, metrics)
        self._messages = messages

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``messages``.
        """
        self.check_given(split)
        rows = self.read_rows(split, [self._messages])
        return [{"messages": _conversation(row, self._messages)} for row in rows]


class PlainText(_FreeTexts):
    """Plain texts with one example a row, whose every token is predicted from those before it.

    Args:
        train: Training texts: a .txt file, whose lines are examples, a .csv, .tsv, .json, .jsonl
            or .parquet file, a pattern such as train-*.txt, or a list of them.
        validation: Validation texts, which choose checkpoints and coefficients.
        test: Test texts, which score the result.
        text: Column of the text; that of a .txt file is called text.
        metrics: Names of metrics; inverse_perplexity when left out.
    """

    def __init__(
        self,
        train: Files | None = None,
        validation: Files | None = None,
        test: Files | None = None,
        text: str = "text",
        metrics: list[str] | None = None,
    ) -> None:
        super().__init__({"train": train, "validation": validation, "test": test}, metrics)
        self._text = text

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text`` alone.
        """
        self.check_given(split)
        return [{"text": row.text(self._text)} for row in self.read_rows(split, [self._text])]


def _conversation(row: Row, column: str) -> list[dict[str, str]]:
    found: Any = row.values.get(column)
    if not isinstance(found, list) or not all(map(_is_message, found)):
        raise UserError(
            f"{row.at(column)}: must be a list of messages, each with a role and its content as "
            f"texts, but is {str(found)[:40]!r}"
        )
    if len(found) < 2 or found[-1]["role"] != "assistant" or not found[-1]["content"].strip():
        raise UserError(
            f"{row.at(column)}: has {len(found)} message(s), of which the last must be the "
            "assistant's answer to those before it"
        )
    return [{"role": one["role"], "content": one["content"]} for one in found]


def _is_message(one: Any) -> bool:
    return isinstance(one, Mapping) and all(
        isinstance(one.get(key), str) for key in ("role", "content")
    )
