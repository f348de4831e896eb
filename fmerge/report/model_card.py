"""Hugging Face model cards: what a merged folder says of itself."""

import inspect
from collections.abc import Mapping
from typing import Any

import yaml
from torch import nn

from fmerge import __version__
from fmerge.report.markdown import code, plain, sentence, table
from fmerge.report.merge_report import MergeReport
from fmerge.report.sections import comparison_lines, score_lines, task_lines

_MODELS = ("name", "read from", "SHA-256 of its weights")
_HEAD = """\
It has the head of the task {task}{how}.

"""
_FITTED = (", as that task's expert had it", ", refitted to the merged body")
_LOADING = """\
```python
from transformers import AutoTokenizer, {kind}

folder = "."  # the folder that holds this file, or its id on the hub
model = {kind}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


def model_card(report: MergeReport, kind: str | None = None, task: str | None = None) -> str:
    """Writes the ``README.md`` of a merged model.

    Args:
        report: The result of the merge.
        kind: Class of transformers that reads the folder, where it is one.
        task: The task whose head the model has, where heads differ.

    Returns:
        Markdown with YAML before it.
    """
    sources = [path for _, path, _ in report.models()]
    front = {
        "library_name": "transformers",
        "base_model": list(dict.fromkeys(sources[-1:] + sources if report.base else sources)),
        "base_model_relation": "merge",
        "tags": ["merge", "fmerge", report.method],
    }
    how = _FITTED[report.refit_heads != "off"]
    head = [] if task is None else _HEAD.format(task=code(task), how=how).splitlines()
    found = report.models()
    models = [[plain(name), plain(path), code(sha) if sha else "-"] for name, path, sha in found]
    coefficients = [[code(name), f"{one:.6g}"] for name, one in report.best.coefficients.items()]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {report.method} of {len(report.experts)} experts",
        "",
        f"A merge of fine-tuned models, made by fmerge {__version__}.",
        "",
        *head,
        *(f"- {sentence(fact)}" for fact in report.made()),
        *(f"- {sentence(fact)}" for fact in (report.choice() if report.rows else [])),
        *["", "## Coefficients", "", *table(["coefficient", "value"], coefficients)],
        *[
            "",
            "## Models",
            "",
            *table(["name", "read from", "SHA-256 of its weights"], models, texts=3),
        ],
    ]
    if report.rows:
        lines += ["", "## Scores", *score_lines(report.rows, report.measure)]
        lines += comparison_lines(report.comparisons)
    lines += task_lines(report.tasks)
    if kind is not None:
        lines += ["", "## Use", "", _LOADING.format(kind=kind)]
    return "\n".join(lines) + "\n"


def loader_of(model: nn.Module) -> str | None:
    """Names what reads a network back.

    Args:
        model: The network.

    Returns:
        Its class in transformers; None if it is of another library.
    """
    from transformers import PreTrainedModel

    return type(model).__name__ if isinstance(model, PreTrainedModel) else None


def parameters_of(method: object) -> Mapping[str, Any]:
    """Reads back what a method was made with.

    Args:
        method: The method.

    Returns:
        The arguments of its constructor that it keeps under their names.
    """
    names = inspect.signature(type(method)).parameters
    return {name: getattr(method, name) for name in names if hasattr(method, name)}
