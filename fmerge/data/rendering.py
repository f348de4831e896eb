"""Renders a row of a data set as a prompt, its choices and the true one."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from fmerge.data.examples import Example
from fmerge.data.missing import TemplateError
from fmerge.data.sandbox import Template, expression
from fmerge.errors import printable
from fmerge.store.labels import is_whole, plain_number

_BRACES = re.compile(r"\s*\{\{((?:(?!\}\}).)*)\}\}\s*", re.DOTALL)
_BAR = "|||"
# stands for bars in the row's own text, which must not separate a prompt from its target
_STAND_IN = "\ue000bar\ue000"


class Prompt(ABC):
    """A compiled template of examples.

    Attributes:
        columns: Columns that it reads.
        free: Whether its answers are free, not choices.
    """

    columns: frozenset[str]
    free = False

    @abstractmethod
    def example(self, row: Mapping[str, Any]) -> Example:
        """Renders a row.

        Args:
            row: Column name to value.

        Returns:
            ``text`` with ``choices`` and ``label``, the index of the true one, or with a free
            ``answer``.

        Raises:
            TemplateError: If the row does not give a valid example.
        """  # noqa: DOC202, DOC501 - what implementations do


class AnswerTemplate(Prompt):
    """fmerge's own form: a template each for the prompt, the choices and the label.

    Args:
        text: Jinja.
        choices: A Jinja text for each, or one expression that gives a list.
        label: An expression that gives the index of the true choice, or its text.
    """

    def __init__(self, text: str, choices: str | Sequence[str], label: str) -> None:
        self._text = _compiled("text", Template, text)
        self._label, self._label_is_text = _value("label", label)
        self._list: Template | None = None
        self._each: list[Template] = []
        if isinstance(choices, str):
            self._list, rendered = _value("choices", choices)
            if rendered:
                raise TemplateError("choices: is text, but must be a list or give one")
        else:
            self._each = [_compiled("choices", Template, one) for one in choices]
        parts = [self._text, self._label, *self._each, *([self._list] if self._list else [])]
        self.columns = frozenset[str]().union(*(part.columns for part in parts))

    def example(self, row: Mapping[str, Any]) -> Example:
        """Renders a row.

        Args:
            row: Column name to value.

        Returns:
            ``text``, ``choices`` and ``label``.
        """
        text = _rendered("text", self._text.text, row)
        if self._list is None:
            choices = [_rendered("choices", one.text, row) for one in self._each]
        else:
            choices = _texts(_rendered("choices", self._list.value, row))
        read = self._label.text if self._label_is_text else self._label.value
        return _example(text, choices, _rendered("label", read, row))


class FreeTemplate(Prompt):
    """fmerge's own form with a free answer.

    Args:
        text: Jinja.
        answer: Jinja with braces or blocks, or an expression, such as the name of a column.
    """

    free = True

    def __init__(self, text: str, answer: str) -> None:
        self._text = _compiled("text", Template, text)
        self._answer, self._answer_is_text = _value("answer", answer)
        self.columns = self._text.columns | self._answer.columns

    def example(self, row: Mapping[str, Any]) -> Example:
        """Renders a row.

        Args:
            row: Column name to value.

        Returns:
            ``text`` and ``answer``.

        Raises:
            TemplateError: If the answer is neither a text nor a number.
        """
        text = _rendered("text", self._text.text, row)
        read = self._answer.text if self._answer_is_text else self._answer.value
        answer = _rendered("answer", read, row)
        if not isinstance(answer, str | int | float):
            raise TemplateError(f"answer: is {type(answer).__name__}, but must be a text")
        return _free_example(text, str(answer).strip())


class PromptsourceTemplate(Prompt):
    """promptsource's form: ``prompt ||| target`` and ``choice ||| choice``.

    Args:
        jinja: Prompt and target.
        answer_choices: The choices; the prompt can read them as ``answer_choices``. Without them
            the target is a free answer.
    """

    def __init__(self, jinja: str, answer_choices: str | None) -> None:
        self._both = _compiled("jinja", Template, jinja)
        self._choices: Template | None = None
        self.columns = self._both.columns
        self.free = answer_choices is None
        if answer_choices is not None:
            self._choices = _compiled("answer_choices", Template, answer_choices)
            self.columns = (self.columns - {"answer_choices"}) | self._choices.columns

    def example(self, row: Mapping[str, Any]) -> Example:
        """Renders a row.

        Args:
            row: Column name to value.

        Returns:
            ``text`` with ``choices`` and ``label``, or with ``answer``.

        Raises:
            TemplateError: If there is not one bar between a prompt and a target.
        """
        row = _without_bars(row)
        choices: list[str] = []
        if self._choices is not None:
            listed = _rendered("answer_choices", self._choices.text, row).split(_BAR)
            choices = [one.strip() for one in listed]
            row = {**row, "answer_choices": choices}
        both = _rendered("jinja", self._both.text, row)
        parts = [one.strip().replace(_STAND_IN, _BAR) for one in both.split(_BAR)]
        if len(parts) != 2:
            raise TemplateError(
                f"jinja: gives {len(parts)} part(s), but must give 'prompt ||| target'"
            )
        if self._choices is None:
            return _free_example(*parts)
        return _example(parts[0], [one.replace(_STAND_IN, _BAR) for one in choices], parts[1])


def _free_example(text: str, answer: str) -> Example:
    for key, value in (("text: the prompt", text), ("answer: it", answer)):
        if not value:
            raise TemplateError(f"{key} is empty")
    return {"text": text, "answer": answer}


def _example(text: str, choices: list[str], label: Any) -> Example:
    if not text:
        raise TemplateError("text: the prompt is empty")
    if len(choices) < 2:
        raise TemplateError(f"choices: there is {choices!r}, but at least two are needed")
    if not all(choices):
        raise TemplateError(f"choices: one of {choices!r} is empty")
    # equal choices have equal likelihoods: neither could ever be the prediction
    twice = [one for i, one in enumerate(choices) if one in choices[:i]]
    if twice:
        raise TemplateError(f"choices: '{printable(twice[0])}' is there twice")
    return {"text": text, "choices": choices, "label": _index(label, choices)}


def _index(label: Any, choices: list[str]) -> int:
    """Looks a text up in the choices; a whole number that is no choice's text is an index."""
    text = str(label).strip()
    # text before index: where the choices are numbers, "2" means the choice "2"
    if isinstance(label, str) and text in choices:
        return choices.index(text)
    if text.casefold() in {"true", "false"}:
        alike = [i for i, choice in enumerate(choices) if choice.casefold() == text.casefold()]
        return alike[0] if len(alike) == 1 else int(text.casefold() == "true")
    # JSON and Parquet hold whole numbers as 1.0 where others of the column are missing
    text = plain_number(text)
    if is_whole(text) and 0 <= int(text) < len(choices):
        return int(text)
    raise TemplateError(
        f"label: {label!r} is none of the choices {choices!r}, nor an index from 0 to "
        f"{len(choices) - 1}"
    )


def _texts(value: Any) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TemplateError(f"choices: is {str(value)[:60]!r}, but must give a list")
    return [str(one).strip() for one in value]


def _value(key: str, source: str) -> tuple[Template, bool]:
    """Compiles an expression, or a text with braces or blocks; returns whether it is a text."""
    if whole := _BRACES.fullmatch(source):
        source = whole[1]
    elif "{{" in source or "{%" in source:
        return _compiled(key, Template, source), True
    return _compiled(key, expression, source), False


def _compiled(key: str, make: Any, source: str) -> Template:
    try:
        template: Template = make(source)
    except TemplateError as error:
        raise TemplateError(f"{key}: {error}") from error
    return template


def _rendered(key: str, render: Any, row: Mapping[str, Any]) -> Any:
    try:
        return render(row)
    except TemplateError as error:
        raise TemplateError(f"{key}: {error}") from error


def _without_bars(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(_BAR, _STAND_IN)
    if isinstance(value, Mapping):
        return {key: _without_bars(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_bars(one) for one in value]
    return value
