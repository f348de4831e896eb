"""What a command would do, printed instead of done."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fmerge.data import MultiTask, Split
from fmerge.data.examples import check_images
from fmerge.errors import counted
from fmerge.evaluation.passes import Cost, Pass, Passes
from fmerge.evaluation.statistics import statistic_of
from fmerge.modules import TaskModule
from fmerge.params import params_of
from fmerge.runs.finish import calibration_of
from fmerge.runs.pass_plan import PassPlan
from fmerge.runs.timing import (
    adopt_random,
    batches,
    examples_in_batch,
    seconds_of_pass,
)
from fmerge.search import Search
from fmerge.store import SavedForm
from fmerge.system.memory import free_memory

if TYPE_CHECKING:
    from fmerge.runs.fisher import FisherRun
    from fmerge.runs.merge import MergeRun

LEFT = "NaN and infinite weights, distance to the base, whose Fisher a file is"
"""Checks that need numbers, and are therefore left to the run."""


def show_fisher_plan(run: "FisherRun", network: nn.Module, tokenizer: Any) -> None:
    """Prints what a Fisher would be of, and what it would take.

    Args:
        run: The Fisher.
        network: What it is taken over; its weights may be lacking.
        tokenizer: Its tokenizer, where the module is a task module.
    """
    trainer, module, data, task = run.trainer, run.module, run.data, run.task
    settings = run.settings
    _open_images(data, task, settings.split)
    examples = data.size(task, settings.split, settings.examples)
    one = _float32(params_of(network).values())

    def measure(_: str, task: str) -> float:
        if isinstance(module, TaskModule):
            adopt_random(module, task, network, tokenizer)
        return seconds_of_pass(trainer, module, data, task, settings)

    passes = Passes({Pass("Fisher", task, settings.split, examples): 1})
    rows: dict[str, str] = {
        "task": task,
        "estimator": settings.estimator,
        "examples": f"{examples} of {data.size(task, settings.split)} in {settings.split}",
        "memory": f"parameters {_mib(one)}, Fisher {_mib(one)}, and what a batch takes"
        + _free(trainer),
        "disk": f"{_mib(one)}, and as much for what is unfinished{_room(run.output)}",
        "time": _time(trainer, data, passes, 3 * one, measure),
    }
    if settings.until is not None:
        rows["time"] += ", or less with until"
    _show(trainer, rows)


def show_merge_plan(run: "MergeRun", search: Search, plan: PassPlan, output: Path) -> None:
    """Prints what would be merged and searched, and what it would take.

    Args:
        run: The merge; headers of its experts suffice.
        search: The started search.
        plan: The passes that the run would make.
        output: The run's folder.
    """
    ensemble, method, data = run.ensemble, run.method, run.data
    saved = {id(model): run.forms.get(name) for name, model in ensemble.networks.items()}
    models = {id(model): model for model in ensemble.networks.values()}
    disk = sum(_on_disk(model, saved[key]) for key, model in models.items())
    kind = "merged models"
    if run.adapter is not None:
        disk, kind = len(models) * run.adapter.size, "adapters at most, and what has no factors"
    rows = {f"expert {name}": str(source) for name, source in ensemble.sources.items()}
    if ensemble.base_source is not None:
        rows["base"] = str(ensemble.base_source)
    rows["method"] = type(method).__name__
    rows["search"] = f"{type(search).__name__}, {counted(search.budget, 'trial')}"
    if plan.resuming:
        rows["search"] += ", after those that the output folder has"
    rows |= {f"task {name}": sizes for name, sizes in _sizes(data).items()}
    rows["memory"] = f"{_memory(run)}, and what a batch takes{_free(run.trainer)}"
    rows["disk"] = f"{_mib(disk)} ({len(models)} {kind}){_room(output)}"
    if data is not None:
        for task, split in sorted({(one.task, one.split) for one in plan.passes()}):
            _open_images(data, task, split)
        rows["time"] = _time_of_merge(run, data, plan) + ", without the formula's own"
    _show(run.trainer, rows)


def _memory(run: "MergeRun") -> str:
    """The bodies, and the statistics of each expert."""
    ensemble, statistic = run.ensemble, statistic_of(run.method)
    bodies = list(ensemble.bodies.values())
    one = _float32(bodies[0].values())
    # the experts, the base, the merge and the live body
    held = len(bodies) + (ensemble.base is not None) + 2
    memory = f"parameters {_mib(held * one)} ({held} bodies)"
    if statistic is None:
        return memory
    network = next(iter(ensemble.models.values()))
    copies = len(bodies) * statistic.copies(run.settings)
    size = _mib(copies * statistic.size(network, bodies[0]))
    return f"{memory}, {statistic.label} {size} ({copies})"


def _time_of_merge(run: "MergeRun", data: MultiTask, plan: PassPlan) -> str:
    adopted: list[str] = []

    def measure(cost: str, task: str) -> float:
        if task not in adopted:  # one network at a time
            model = run.ensemble.models[task]
            adopt_random(run.module, task, model, run.ensemble.tokenizers[task])
            adopted[:] = [task]
        own = run.settings if cost == "Fisher" else None
        fitted = calibration_of(run) if cost == "calibration" else None
        seconds = seconds_of_pass(run.trainer, run.module, data, task, own, calibration=fitted)
        # the backward pass of a training step takes twice the time of the forward pass
        return 3 * seconds if cost == "step" else seconds

    one = _float32(next(iter(run.ensemble.bodies.values())).values())
    return _time(run.trainer, data, plan.passes(), 3 * one, measure)


def _time(
    trainer: Trainer,
    data: MultiTask,
    passes: Passes,
    needed: int,
    measure: Callable[[Cost, str], float],
) -> str:
    """Multiplies the times of one batch by the batches there are."""
    free = _free_bytes(trainer)
    if free is not None and needed > free:
        return f"not measured: a batch takes {_mib(needed)} or more, of which {_mib(free)} are free"
    kinds = sorted({(task, kind) for kind, task, _, _ in passes})  # task by task
    measured = {(kind, task): measure(kind, task) for task, kind in kinds}
    seconds = total_seconds(passes, measured, data, trainer.world_size)
    most = max(measured.values(), default=0.0)
    size = examples_in_batch(data)
    return f"about {_duration(seconds)}: an estimate from one batch of {size} ({_duration(most)})"


def total_seconds(
    passes: Mapping[Pass, int],
    measured: Mapping[tuple[Cost, str], float],
    data: MultiTask,
    processes: int,
) -> float:
    """Extrapolates from one batch to all of them.

    Args:
        passes: How often each pass is made.
        measured: Seconds of one batch by kind and task.
        data: The data, which know the batch size.
        processes: How many share the examples.

    Returns:
        Seconds.
    """
    return sum(
        number * batches(examples, data, processes) * measured[kind, task]
        for (kind, task, _, examples), number in passes.items()
    )


def _open_images(data: MultiTask, task: str, split: Split) -> None:
    check_images(f"task '{task}', {split} split", data.tasks[task].examples(split))


def _sizes(data: MultiTask | None) -> dict[str, str]:
    splits: tuple[Split, ...] = ("validation", "test")
    if data is None:
        return {}
    return {
        name: ", ".join(f"{data.size(name, split)} {split} examples" for split in splits)
        for name in data.tasks
    }


def _float32(tensors: Iterable[Tensor]) -> int:
    return sum(4 * tensor.numel() for tensor in tensors)


def _on_disk(model: nn.Module, form: SavedForm | None) -> int:
    form = form or SavedForm()
    return sum(t.numel() * form.dtype_of(name).itemsize for name, t in params_of(model).items())


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _free_bytes(trainer: Trainer) -> int | None:
    """The least of what the device and main memory, which models are read into, have free."""
    devices = {trainer.strategy.root_device, torch.device("cpu")}
    found = [one.free for one in map(free_memory, devices) if one is not None]
    return min(found, default=None)


def _free(trainer: Trainer) -> str:
    free = _free_bytes(trainer)
    return "" if free is None else f"; {_mib(free)} free"


def _room(output: Path) -> str:
    place = output.absolute()
    while not place.exists():
        place = place.parent
    return f"; {_mib(shutil.disk_usage(place).free)} free"


def _show(trainer: Trainer, rows: dict[str, str]) -> None:
    if not trainer.is_global_zero:
        return
    table = Table("what", "is", title="Dry run: all checks of headers passed, nothing was written")
    rows = rows | {"left to the run": LEFT}
    for name, value in rows.items():
        table.add_row(name, value)
    # paths and sentences stay whole, to be searched for
    width = 7 + max(map(len, rows)) + max(map(len, rows.values()))
    Console(soft_wrap=True, width=width).print(table)
