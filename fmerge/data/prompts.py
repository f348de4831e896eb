"""Text-to-text tasks: rows of a data set, turned into prompts by a template."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from fmerge.data.examples import Example, Split, TaskData
from fmerge.data.hub import read_rows
from fmerge.data.missing import TemplateError, with_missing
from fmerge.data.rendering import AnswerTemplate, FreeTemplate, Prompt, PromptsourceTemplate
from fmerge.data.tables import Files, Row, find_files, is_table, read_table, with_numbers
from fmerge.data.template_files import SPLITS, Fields, check_fields, read_template
from fmerge.errors import UserError

_HALF = re.compile(r"(first|second) half of (.+)")
_Table = tuple[Prompt, Any, Callable[[int], tuple[str, str]]]
"""A prompt, the rows to render with it, and the name of each row's place with its line."""


class Prompted(TaskData):
    """A text-to-text task: each row becomes a prompt with choices to rank, or a free answer.

    Shipped templates, of the tasks of Lee et al. (NAACL 2025): paws, qasc, quartz, story_cloze,
    wiki_qa and winogrande. Their files in ``fmerge/data/templates`` show how to write one. Its
    fields can also be given here, instead of a template or of single fields of it.

    Templates are Jinja in a sandbox: they read the row's columns and nothing else.

    Args:
        template: A shipped template's name, or a YAML file: fmerge's own fields, or the
            templates of promptsource.
        source: The data set: a hub id, a folder of the hub's layout, a folder that
            ``save_to_disk`` wrote, or a .csv, .json, .jsonl or .parquet file.
        name: Which configuration of the data set.
        splits: train, validation or test to the data set's own split, ``first half of`` or
            ``second half of`` one (in its order, the second with the odd row), to a file, a
            pattern such as train-*.parquet, or a list of them.
        text: Jinja of the prompt, or the name of the column that holds it.
        choices: A Jinja text for each choice, or one Jinja expression that gives a list.
        label: Jinja expression of the true choice: its index, from 0, or its text.
        template_name: Which template of a promptsource file.
        answer: Jinja of a free answer, or the name of the column that holds it, for
            ``TextGenerator``, in the place of choices and label.
        metrics: Names of metrics; when left out, accuracy of choices, and inverse_perplexity of
            free answers.
    """

    def __init__(
        self,
        template: str | None = None,
        source: str | None = None,
        name: str | None = None,
        splits: dict[str, Files] | None = None,
        text: str | None = None,
        choices: list[str] | str | None = None,
        label: str | None = None,
        template_name: str | None = None,
        answer: str | None = None,
        metrics: list[str] | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "source": source, "name": name, "splits": splits,
            "text": text, "choices": choices, "label": label, "answer": answer,
        }  # fmt: skip
        given = {key: value for key, value in given.items() if value is not None}
        check_fields(given, "Prompted")
        self.where = "Prompted" if template is None else f"template {template}"
        if template is None and template_name is not None:
            raise UserError("Prompted: template_name is set, but template is not")
        fields = Fields() if template is None else read_template(template, template_name)
        # given splits replace single ones of the template, other fields replace it as a whole
        given["splits"] = {**fields.splits, **(splits or {})}
        fields = replace(fields, **given)
        self.source, self.name = fields.source, fields.name
        self.splits = self._split_sources(fields)
        self._one_file = None if fields.splits else fields.source
        self._fields = fields
        self._prompt = self._compile(fields)
        usual = ("inverse_perplexity" if self._prompt.free else "accuracy",)
        self.metrics = usual if metrics is None else metrics
        self._word = fields.text if fields.text and fields.text.isidentifier() else None
        self._examples: dict[Split, list[Example]] = {}

    @property
    def labels(self) -> list[str]:
        """Empty: the choices differ by example, or the answers are free."""
        return []

    def has(self, split: Split) -> bool:
        """Tells whether the task has a split, where that is known without reading it.

        Args:
            split: Which one.

        Returns:
            Whether it was given; True for the splits of a data set.
        """
        return split in self.splits

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads and renders one split, once.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text``, and ``choices`` and ``label`` or ``answer``.

        Raises:
            UserError: If the split or a column is missing, or a row cannot be rendered.
        """
        if split not in self._examples:
            self._examples[split] = self._read(split)
        return self._examples[split]

    def _read(self, split: Split) -> list[Example]:
        if split not in self.splits:
            raise UserError(f"{self.where}: has no {split} split; set splits.{split}")
        half, own = _halved(self.splits[split])
        self._check_one_file(split, own)
        read = self._from_files if _are_files(own) else self._from_data_set
        prompt, rows, places = read(split, own)
        first, last = halves(len(rows))[half] if half else (0, len(rows))
        examples = []
        for i, row in islice(enumerate(rows), first, last):
            try:
                examples.append(prompt.example(with_missing(row)))
            except TemplateError as error:
                place, line = places(i)
                raise UserError(f"{self.where}: {place}: {error}{line}") from error
        return examples

    def _from_data_set(self, split: Split, own: Files) -> "_Table":
        table = read_rows(str(self.source), str(own), self.name, sorted(self._prompt.columns))
        prompt = self._prompt_for(table.column_names)
        # other columns may hold images or audio, which reading a row would decode
        table = table.select_columns(sorted(prompt.columns))
        return prompt, table, lambda i: (f"row {i + 1} of {own}", "")

    def _from_files(self, split: Split, own: Files) -> "_Table":
        columns, optional = sorted(self._prompt.columns), [self._word] if self._word else []
        rows: list[Row] = []
        places: list[tuple[str, str]] = []
        for file in find_files(own):
            found = read_table(file, columns, split, optional)
            for number, row in enumerate(found, 1):
                # the number of a row leaves a header out, that of its line does not
                line = f" (line {row.number})" if row.number != number else ""
                places.append((f"row {number} of {file}", line))
            rows += found
        names = set(rows[0].values).intersection(*(row.values for row in rows)) if rows else set()
        values = [row.values for row in with_numbers(rows)]
        return self._prompt_for(names), values, places.__getitem__

    def _prompt_for(self, names: Collection[str]) -> Prompt:
        """The prompt; where its text is a single word, which is one of the columns, that column."""
        if self._word is None or self._word not in names:
            return self._prompt
        return self._compile(replace(self._fields, text=f"{{{{ {self._word} }}}}"))

    def _split_sources(self, fields: Fields) -> dict[str, Files]:
        """Resolves where each split is read from, and checks that its files exist."""
        splits: dict[str, Files] = dict(fields.splits)
        if fields.source is not None and _are_files(fields.source):
            # a file has no splits of its own: all are in it, whatever their names
            splits = {
                key: f"{half} half of {fields.source}" if half else fields.source
                for key, value in (splits or dict.fromkeys(SPLITS, "all")).items()
                for half in (_halved(value)[0],)
            }
        elif fields.source is not None:
            splits = {**dict(zip(SPLITS, SPLITS, strict=True)), **splits}
        files = [_halved(value)[1] for value in splits.values()]
        if fields.source is None and not (files and all(map(_are_files, files))):
            reason = (
                f": {fields.obtain}" if fields.obtain else "; name the data, or files as splits"
            )
            raise UserError(f"{self.where}: source is not set{reason}")
        for one in files:
            if _are_files(one):
                find_files(one)
        return splits

    def _check_one_file(self, split: Split, own: Files) -> None:
        other = next(iter(self._examples), None)
        if _are_files(own) and own == self._one_file and other is not None:
            raise UserError(
                f"{own}: is one file, so it cannot be both the {other} and the {split} split; "
                f"set splits, such as {{{other}: first half of {own}, {split}: second half of "
                f"{own}}}"
            )

    def _compile(self, fields: Fields) -> Prompt:
        own = {key: value for key, value in asdict(fields).items() if value is not None}
        try:
            if "jinja" in own:
                if more := {"text", "choices", "label", "answer"} & set(own):
                    raise TemplateError(f"is promptsource's: {min(more)} cannot be given beside it")
                return PromptsourceTemplate(own["jinja"], own.get("answer_choices"))
            if "answer" in own:
                if more := {"choices", "label"} & set(own):
                    raise TemplateError(f"answer: is given, and so is {min(more)}; drop one")
                if "text" not in own:
                    raise TemplateError("text is not set")
                return FreeTemplate(own["text"], own["answer"])
            for key in ("text", "choices", "label"):
                if key not in own:
                    raise TemplateError(f"{key} is not set")
            return AnswerTemplate(own["text"], own["choices"], own["label"])
        except TemplateError as error:
            raise UserError(f"{self.where}: {error}") from error


def _are_files(own: Files) -> bool:
    return not isinstance(own, str) or is_table(own)


def halves(rows: int) -> dict[str, tuple[int, int]]:
    """Halves rows as ``train_test_split(test_size=0.5, shuffle=False)`` of datasets does.

    Args:
        rows: How many there are.

    Returns:
        ``first`` and ``second`` to the first row and the one after the last; an odd row is in
        the second half.
    """
    return {"first": (0, rows // 2), "second": (rows // 2, rows)}


def _halved(split: Files) -> tuple[str | None, Files]:
    """Reads ``first half of validation`` as ('first', 'validation')."""
    if isinstance(split, str) and (found := _HALF.fullmatch(split.strip())):
        return found[1], found[2]
    return None, split
