"""Writes a merge: every task's model with its head, in its form, with its model card."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fmerge.evaluation.head_refit import Heads
from fmerge.merging.buffers import restore_buffer_dtypes
from fmerge.params import Params, write_params
from fmerge.report.merge_report import MergeReport
from fmerge.report.model_card import Loader, loader_of, model_card
from fmerge.store import SavedAdapter, SavedForm, write_text

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


def save_merge(
    run: "MergeRun",
    body: Params,
    heads: tuple[Heads, Heads],
    report: MergeReport,
    folder: Path,
    adapter: SavedAdapter | None = None,
) -> None:
    """Writes the merged models; the first process alone writes.

    Args:
        run: The merge.
        body: The merged tensors.
        heads: Task name to its head, and to what was refitted of it.
        report: What the model cards say.
        folder: The folder of the models.
        adapter: What is written of the body, if the models are written as adapters.
    """
    # precisions such as bf16-true have rounded the live weights: write all of them again
    run.module.float()
    own, refitted = heads
    cards, loader = {}, None
    for name, head in own.items():
        model = run.module.task_model(name)
        tensors = head | refitted.get(name, {}) | body
        # the dtypes that buffers were read in; rounded are the values
        restore_buffer_dtypes(model, head | next(iter(run.ensemble.bodies.values())))
        write_params(model, tensors)
        task = name if head.keys() & dict(model.named_parameters()).keys() else None
        loader = loader_of(model, run.module.reads)
        if adapter is not None and loader is not None:
            loader = replace(loader, base=adapter.base)
        cards[name] = model_card(report, loader, task)
    forms: Mapping[str, SavedForm] = run.forms
    if adapter is not None:
        forms = {name: replace(form, adapter=adapter) for name, form in forms.items()}
    run.module.forms = forms
    if run.trainer.is_global_zero:
        run.module.save(folder, cards)
        save_common_card(folder, report, cards, loader)


def save_common_card(
    folder: Path, report: MergeReport, cards: Mapping[str, str], loader: Loader | None
) -> None:
    """Writes the card of several models together, which the hub shows first.

    Args:
        folder: The folder of the models.
        report: What the card says.
        cards: Name of each model's folder to its card; one model lies in ``folder`` itself.
        loader: The classes that read the first model, if transformers has some.
    """
    folders = [name for name in cards if (folder / name / "README.md").is_file()]
    if "" in cards or not folders:
        return
    write_text(folder / "README.md", model_card(report, loader, folders=folders))


def rounded(run: "MergeRun", heads: Heads) -> Heads:
    """Rounds heads to what will be read back from the merged models.

    Args:
        run: The merge.
        heads: Task name to head.

    Returns:
        The heads; the same ones where the run has no forms.
    """
    if not run.forms:
        return heads
    return {
        task: {
            key: one.to(run.forms[task].dtype_of(key, one.dtype))
            if one.is_floating_point()
            else one
            for key, one in head.items()
        }
        for task, head in heads.items()
    }


def with_changed(heads: Heads, changed: Heads) -> Heads:
    """Changes some tensors of heads.

    Args:
        heads: Task name to head.
        changed: Task name to new tensors.

    Returns:
        Heads with the new tensors.
    """
    return {task: head | changed.get(task, {}) for task, head in heads.items()}
