"""What a command would do, printed instead of done."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fmerge.data import MultiTask, Split
from fmerge.fisher import FisherSettings
from fmerge.merging.experts import Ensemble
from fmerge.runs.timing import (
    adopt_random,
    batches,
    examples_in_batch,
    free_memory,
    seconds_of_pass,
)
from fmerge.methods import Average, MergeMethod
from fmerge.modules import TaskModule, linear_weights
from fmerge.params import params_of
from fmerge.evaluation.head_refit import Refitting, obstacle
from fmerge.search import Search

LEFT = "NaN and infinite weights, distance to the base, whose Fisher a file is"
"""Checks that need numbers, and are therefore left to the run."""

Pass = tuple[str, str, Split, int]
"""Kind (``score`` or ``Fisher``), task, split and examples."""


def show_fisher_plan(
    trainer: Trainer,
    module: LightningModule,
    network: nn.Module,
    tokenizer: Any,
    data: MultiTask,
    task: str,
    settings: FisherSettings,
    output: Path,
) -> None:
    """Prints what a Fisher would be of, and what it would take.

    Args:
        trainer: The Trainer, which runs one batch.
        module: What it runs.
        network: What the Fisher is taken over; its weights may be lacking.
        tokenizer: Its tokenizer, where the module is a task module.
        data: The data.
        task: The task.
        settings: Estimator and examples.
        output: Where it would be written.
    """
    there = len(data.tasks[task].examples(settings.split))
    examples = min(settings.examples or there, there)
    one = _float32(params_of(network).values())

    def measure(_: str, task: str) -> float:
        if isinstance(module, TaskModule):
            adopt_random(module, task, network, tokenizer)
        return seconds_of_pass(trainer, module, data, task, settings)

    passes = Counter[Pass]({("Fisher", task, settings.split, examples): 1})
    rows: dict[str, str] = {
        "task": task,
        "estimator": settings.estimator,
        "examples": f"{examples} of {there} in {settings.split}",
        "memory": f"parameters {_mib(one)}, Fisher {_mib(one)}, and what a batch takes"
        + _free(trainer),
        "disk": f"{_mib(one)}, and as much for what is unfinished{_room(output)}",
        "time": _time(trainer, data, passes, 3 * one, measure),
    }
    if settings.until is not None:
        rows["time"] += ", or less with until"
    _show(trainer, rows)


def show_merge_plan(
    trainer: Trainer,
    module: TaskModule,
    ensemble: Ensemble,
    data: MultiTask | None,
    method: MergeMethod,
    search: Search,
    settings: FisherSettings,
    output: Path,
    passes: Counter[Pass],
    resuming: bool,
) -> None:
    """Prints what would be merged and searched, and what it would take.

    Args:
        trainer: The Trainer, which runs a batch of every task.
        module: What it runs.
        ensemble: Base, experts and Fishers, of which headers suffice.
        data: The tasks, if there are any.
        method: The formula.
        search: The started search.
        settings: How Fishers that are not given are estimated.
        output: The run's folder.
        passes: What ``merge_passes`` counted.
        resuming: Whether the output folder holds a run that would be gone on with.
    """
    bodies = list(ensemble.bodies.values())
    one = _float32(bodies[0].values())
    # the experts, the base, the merge and the live body
    held = len(bodies) + (ensemble.base is not None) + 2
    fishers = {
        "fisher": len(bodies),
        "moving fisher": len(bodies) * max(settings.curve, 1),
    }.get(method.statistic or "", 0)
    disk = sum(_float32(params_of(model).values()) for model in ensemble.models.values())
    rows = {f"expert {name}": str(source) for name, source in ensemble.sources.items()}
    if ensemble.base_source is not None:
        rows["base"] = str(ensemble.base_source)
    rows["method"] = type(method).__name__
    rows["search"] = f"{type(search).__name__}, {search.budget} trials"
    if resuming:
        rows["search"] += ", after those that the output folder has"
    rows |= {f"task {name}": sizes for name, sizes in _sizes(data).items()}
    memory = f"parameters {_mib(held * one)} ({held} bodies)"
    if fishers:
        memory += f", Fishers {_mib(fishers * one)} ({fishers})"
    if method.statistic == "gram":
        network = next(iter(ensemble.models.values()))
        entries = sum(weight.inputs**2 for weight in linear_weights(network, bodies[0]).values())
        memory += f", Grams {_mib(4 * len(bodies) * entries)} (of {len(bodies)} experts)"
    rows["memory"] = memory + ", and what a batch takes" + _free(trainer)
    rows["disk"] = f"{_mib(disk)} ({len(ensemble.models)} merged models){_room(output)}"
    if data is not None:
        adopted: list[str] = []

        def measure(kind: str, task: str) -> float:
            if task not in adopted:  # one network at a time
                adopt_random(module, task, ensemble.models[task], ensemble.tokenizer)
                adopted[:] = [task]
            own = settings if kind == "Fisher" else None
            return seconds_of_pass(trainer, module, data, task, own)

        rows["time"] = _time(trainer, data, passes, 3 * one, measure)
        rows["time"] += ", without the formula's own"
    _show(trainer, rows)


def merge_passes(
    module: TaskModule,
    ensemble: Ensemble,
    data: MultiTask | None,
    method: MergeMethod,
    search: Search,
    settings: FisherSettings,
    references: str,
    own: bool,
    refitting: Refitting,
) -> Counter[Pass]:
    """Counts the passes over data that a whole merge makes.

    Args:
        module: What is run.
        ensemble: Base, experts and Fishers.
        data: The tasks, if there are any.
        method: The formula.
        search: The started search.
        settings: How Fishers that are not given are estimated.
        references: Which rows the table has beside the merge.
        own: Whether the experts' own validation scores are needed.
        refitting: When heads are refitted, and on what.

    Returns:
        How often each pass is made.
    """
    passes: Counter[Pass] = Counter()
    if data is None:
        return passes
    every = references == "all"
    plain = isinstance(method, Average)
    rival = every and search.budget > 1  # the second best trial is tested as well
    bodies = (every or plain) + (not plain) + rival
    based = every and ensemble.base is not None
    # bodies that heads are refitted to, and tested with
    refitted = bodies * refitting.wanted + (based and not obstacle(module, data, ensemble.models))
    rows = 1 + bodies + based + refitted
    fits = refitted + search.budget * (refitting.when == "trials")
    for task in ensemble.tasks:
        here = data.tasks[task]
        passes["score", task, "validation", len(here.examples("validation"))] += search.budget + own
        passes["score", task, "test", len(here.examples("test"))] += rows
        if fits:  # their features cost a forward pass, as scores do
            there = len(here.examples("train"))
            passes["score", task, "train", min(refitting.most or there, there)] += fits
    once = 0 if ensemble.fishers else 1
    times = {None: 0, "gram": 0, "fisher": once, "moving fisher": search.budget + 1 + rival}
    for name in ensemble.names:
        task = name if name in ensemble.models else ensemble.tasks[0]
        there = len(data.tasks[task].examples(settings.split))
        examples = min(settings.examples or there, there)
        number = settings.curve if method.statistic == "moving fisher" else 0
        passes["Fisher", task, settings.split, examples] += number or times[method.statistic]
        # a Gram costs a forward pass, as a score does
        passes["score", task, settings.split, examples] += method.statistic == "gram"
    return +passes


def _time(
    trainer: Trainer,
    data: MultiTask,
    passes: Mapping[Pass, int],
    needed: int,
    measure: Callable[[str, str], float],
) -> str:
    """Multiplies the times of one batch by the batches there are."""
    free = free_memory(trainer.strategy.root_device)
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
    measured: Mapping[tuple[str, str], float],
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


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _free(trainer: Trainer) -> str:
    free = free_memory(trainer.strategy.root_device)
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
