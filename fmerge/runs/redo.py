"""What a report says of its own making: command, seed, versions, machine and times."""

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import torch
from lightning.pytorch import Trainer

from fmerge import __version__
from fmerge.report.merge_report import MergeReport
from fmerge.report.reproduction import Reproduction
from fmerge.store import RunFolder, read_times

_PACKAGES: Final = ("torch", "lightning", "transformers", "ax-platform", "datasets", "safetensors")


def with_redo(
    report: MergeReport,
    trainer: Trainer,
    folder: RunFolder,
    command: str,
    seconds: float,
    before: int = 0,
) -> MergeReport:
    """Adds what it takes to make a merge again, and how long it took.

    Args:
        report: The result.
        trainer: The Trainer that made it.
        folder: The run's folder, which has the trials' times.
        command: The exact command; empty of a run from Python.
        seconds: Wall time of this process.
        before: How many trials an interrupted run had made.

    Returns:
        The report with it.
    """
    times = read_times(folder.times, len(report.trials))
    redo = Reproduction(
        command=command,
        seed=_seed(),
        versions=_versions(),
        machine=_machine(trainer),
        seconds=seconds,
        earlier=sum(taken for index, taken in times.items() if index < before),
    )
    search = replace(report.search, seconds=times)
    return replace(report, search=search, provenance=replace(report.provenance, redo=redo))


def _seed() -> int | None:
    found = os.environ.get("PL_GLOBAL_SEED", "")  # as Lightning's seed_everything leaves it
    return int(found) if found.isdigit() else None


def _versions() -> Mapping[str, str]:
    found = {"fmerge": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # installed under another name, such as pytorch-lightning
    return found


def _machine(trainer: Trainer) -> Mapping[str, str]:
    device = trainer.strategy.root_device
    named = f"{os.cpu_count()} cores, {platform.machine()}"
    if device.type == "cuda":
        named = f"{torch.cuda.get_device_name(device)}; {named}"
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": named,
        "devices": f"{trainer.world_size} × {device.type}, precision {trainer.precision}",
        "threads": str(torch.get_num_threads()),
    }
