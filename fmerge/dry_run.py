"""What a command would do, printed instead of done."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from torch import Tensor

from fmerge.data import MultiTask, Split
from fmerge.experts import Ensemble
from fmerge.methods import MergeMethod
from fmerge.params import Params, params_of
from fmerge.search import Search


def show_fisher_plan(
    weights: Params, data: MultiTask, task: str, split: Split, examples: int | None, estimator: str
) -> None:
    """Prints what a Fisher would be of, and what it would take.

    Args:
        weights: The parameters it is taken over.
        data: The data.
        task: The task.
        split: Where the examples come from.
        examples: How many of them at most; all when None.
        estimator: How it is estimated.
    """
    there = len(data.tasks[task].examples(split))
    one = _float32(weights.values())
    _show({
        "task": task,
        "estimator": estimator,
        "examples": f"{min(examples or there, there)} of {there} in {split}",
        "memory": f"parameters {_mib(one)}, Fisher {_mib(one)}, and what a batch takes",
        "disk": f"{_mib(one)}, and as much for what is unfinished",
    })


def show_merge_plan(
    ensemble: Ensemble,
    data: MultiTask | None,
    method: MergeMethod,
    search: Search,
    curve: int,
    going_on: bool,
) -> None:
    """Prints what would be merged and searched, and what it would take.

    Args:
        ensemble: Base, experts and Fishers.
        data: The tasks, if there are any.
        method: The formula.
        search: The started search.
        curve: Nodes of each Fisher's curve; 0 for none.
        going_on: Whether the output folder holds a run that would be gone on with.
    """
    bodies = list(ensemble.bodies.values())
    one = _float32(bodies[0].values())
    # the experts, the base, the merge and the live body
    held = len(bodies) + (ensemble.base is not None) + 2
    fishers = len(bodies) * max(curve, 1) if method.fisher_at is not None else 0
    disk = sum(_float32(params_of(model).values()) for model in ensemble.models.values())
    rows = {f"expert {name}": str(source) for name, source in ensemble.sources.items()}
    if ensemble.base_source is not None:
        rows["base"] = str(ensemble.base_source)
    rows["method"] = type(method).__name__
    rows["search"] = f"{type(search).__name__}, {search.budget} trials"
    if going_on:
        rows["search"] += ", after those that the output folder has"
    rows |= {f"task {name}": sizes for name, sizes in _sizes(data).items()}
    memory = f"parameters {_mib(held * one)} ({held} bodies)"
    if fishers:
        memory += f", Fishers {_mib(fishers * one)} ({fishers})"
    rows["memory"] = memory + ", and what a batch takes"
    rows["disk"] = f"{_mib(disk)} ({len(ensemble.models)} merged models)"
    _show(rows)


def _sizes(data: MultiTask | None) -> dict[str, str]:
    splits: tuple[Split, ...] = ("validation", "test")
    tasks = {} if data is None else data.tasks
    return {
        name: ", ".join(f"{len(task.examples(split))} {split} examples" for split in splits)
        for name, task in tasks.items()
    }


def _float32(tensors: Iterable[Tensor]) -> int:
    return sum(4 * tensor.numel() for tensor in tensors)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _show(rows: Mapping[str, str]) -> None:
    table = Table("what", "is", title="Dry run: all checks passed, nothing was written")
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)
