"""Hugging Face model cards of merged models."""

import inspect
from collections.abc import Mapping, Sequence
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
from fmerge.store.hub import is_hub_id, public_name

_HEAD = """\
It has the head of the task {task}{how}.

"""
_FITTED = (", as that task's expert had it", ", refitted to the merged body")
_LOADING = """\
```python
from transformers import {inputs}, {model}

folder = "."  # the folder that holds this file, or its id on the hub
model = {model}.from_pretrained({place})
{name} = {inputs}.from_pretrained({place})
```"""


_ADAPTER = """\
```python
from peft import PeftModel
from transformers import {inputs}, {model}

folder = "."  # the folder that holds this file, or its id on the hub
base = {model}.from_pretrained({base!r})  # a classifier: with its num_labels
model = PeftModel.from_pretrained(base, {place})
{name} = {inputs}.from_pretrained({place})
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

    def code(self, inside: str | None = None) -> str:
        """Writes Python that reads the model.

        Args:
            inside: The folder of the model below the one that the card describes, if it is.

        Returns:
            A block of Markdown.
        """
        name = "tokenizer" if "Tokenizer" in self.inputs else "processor"
        loading = _LOADING if self.base is None else _ADAPTER
        base = None if self.base is None else public_name(self.base)
        place = "folder" if inside is None else f"folder, subfolder={inside!r}"
        return loading.format(
            model=self.model, inputs=self.inputs, name=name, base=base, place=place
        )


def model_card(
    report: MergeReport,
    loader: Loader | None = None,
    task: str | None = None,
    folders: Sequence[str] = (),
) -> str:
    """Writes the ``README.md`` of a merged model.

    Args:
        report: The result of the merge.
        loader: The classes that read the folder, if transformers has some.
        task: The task whose head the model has, if heads differ.
        folders: The folders of several models that the card describes together.

    Returns:
        Markdown with YAML before it, which names models by their hub ids or the names of their
        folders, not by places of this machine.
    """
    models = [(name, public_name(path), sha) for name, path, sha in report.provenance.models()]
    base = None if loader is None else loader.base
    front = _front(report, [path for _, path, _ in models], base)
    if loader is None:  # which library has the network is not known
        del front["library_name"]
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
        *_heads(report, task, folders),
        *(f"- {sentence(fact)}" for fact in report.made()),
        *(f"- {sentence(fact)}" for fact in (report.choice() if report.rows else [])),
        *(line for table in tables if table is not None for line in to_markdown(table)),
    ]
    if loader is not None:
        lines += ["", "## Use", "", loader.code(folders[0] if folders else None)]
    return "\n".join(lines) + "\n"


def _heads(report: MergeReport, task: str | None, folders: Sequence[str]) -> list[str]:
    """Says which heads the models have."""
    if folders:
        listed = ", ".join(code(name) for name in folders)
        return [f"Each of these folders has a model with the head of its task: {listed}.", ""]
    how = _FITTED[report.tests.refit_heads != "off"]
    return [] if task is None else _HEAD.format(task=code(task), how=how).splitlines()


def _front(report: MergeReport, sources: list[str], base: str | None) -> dict[str, Any]:
    """What the hub reads of a model card."""
    if report.provenance.base:  # listed last, but the parent of all the others
        sources = [sources[-1], *sources]
    sources = [name for name in sources if is_hub_id(name)]  # the hub refuses cards with others
    front: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["merge", "fmerge", report.search.method],
    }
    relation = "merge"
    if base is not None:
        front["library_name"], relation = "peft", "adapter"
        sources = [name for name in [public_name(base)] if is_hub_id(name)]
    if sources:
        front |= {"base_model": list(dict.fromkeys(sources)), "base_model_relation": relation}
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
