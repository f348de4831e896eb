"""Hugging Face model cards of merged models."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from torch import nn

from fmerge import __version__
from fmerge.report.markdown import code, sentence
from fmerge.report.merge_report import MergeReport
from fmerge.report.sections import coefficient_table, model_table, task_table
from fmerge.report.tables import to_markdown
from fmerge.store import Preprocessors

_HEAD = """\
It has the head of the task {task}{how}.

"""
_FITTED = (", as that task's expert had it", ", refitted to the merged body")
_LOADING = """\
```python
from transformers import {inputs}, {model}

folder = "."  # the folder that holds this file, or its id on the hub
model = {model}.from_pretrained(folder)
{name} = {inputs}.from_pretrained(folder)
```"""


_ADAPTER = """\
```python
from peft import PeftModel
from transformers import {inputs}, {model}

folder = "."  # the folder that holds this file, or its id on the hub
base = {model}.from_pretrained({base!r})  # a classifier: with its num_labels
model = PeftModel.from_pretrained(base, folder)
{name} = {inputs}.from_pretrained(folder)
```"""


@dataclass(frozen=True)
class Loader:
    """The classes of transformers that read a saved model.

    Attributes:
        model: That of the network.
        inputs: That of what makes its inputs.
        base: The base of the adapter that the model is saved as, if it is.
    """

    model: str
    inputs: str = "AutoTokenizer"
    base: str | None = None

    def code(self) -> str:
        """Writes Python that reads the model."""
        name = "tokenizer" if "Tokenizer" in self.inputs else "processor"
        loading = _LOADING if self.base is None else _ADAPTER
        return loading.format(model=self.model, inputs=self.inputs, name=name, base=self.base)


def model_card(report: MergeReport, loader: Loader | None = None, task: str | None = None) -> str:
    """Writes the ``README.md`` of a merged model.

    Args:
        report: The result of the merge.
        loader: The classes that read the folder, if transformers has some.
        task: The task whose head the model has, if heads differ.

    Returns:
        Markdown with YAML before it.
    """
    models = report.provenance.models()
    base = None if loader is None else loader.base
    front = _front(report, [path for _, path, _ in models], base)
    if loader is None:  # which library has the network is not known
        del front["library_name"]
    how = _FITTED[report.tests.refit_heads != "off"]
    head = [] if task is None else _HEAD.format(task=code(task), how=how).splitlines()
    tables = [
        coefficient_table(report.best.coefficients, {}, digits=".6g"),
        model_table(models),
        *([report.scores(), report.differences()] if report.rows else []),
        task_table(report.provenance.tasks) if report.provenance.tasks else None,
    ]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {report.title}",
        "",
        f"A merge of fine-tuned models, made by fmerge {__version__}.",
        "",
        *head,
        *(f"- {sentence(fact)}" for fact in report.made()),
        *(f"- {sentence(fact)}" for fact in (report.choice() if report.rows else [])),
        *(line for table in tables if table is not None for line in to_markdown(table)),
    ]
    if loader is not None:
        lines += ["", "## Use", "", loader.code()]
    return "\n".join(lines) + "\n"


def _front(report: MergeReport, sources: list[str], base: str | None) -> dict[str, Any]:
    """What the hub reads of a model card."""
    if report.provenance.base:  # listed last, but the parent of all the others
        sources = [sources[-1], *sources]
    front = {
        "library_name": "transformers",
        "base_model": list(dict.fromkeys(sources)),
        "base_model_relation": "merge",
        "tags": ["merge", "fmerge", report.search.method],
    }
    if base is not None:
        front |= {"library_name": "peft", "base_model": base, "base_model_relation": "adapter"}
    return front


def loader_of(model: nn.Module, reads: Preprocessors) -> Loader | None:
    """Names the classes that read a network back.

    Args:
        model: The network.
        reads: What its inputs are made by.

    Returns:
        Its class in transformers, and that of its inputs; None if it is of another library.
    """
    from transformers import PreTrainedModel

    return Loader(type(model).__name__, reads.auto) if isinstance(model, PreTrainedModel) else None


def parameters_of(method: object) -> Mapping[str, Any]:
    """Lists the parameters of a method.

    Args:
        method: The method.

    Returns:
        Its constructor's arguments that are attributes of the same name.
    """
    names = inspect.signature(type(method)).parameters
    return {name: getattr(method, name) for name in names if hasattr(method, name)}
