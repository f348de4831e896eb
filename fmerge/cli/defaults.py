"""What a command takes where nothing is given, and how it says so."""

import os
import sys
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from fmerge.errors import UserError

EPOCHS = 3
"""Of a fit whose length is not given; Lightning's own default is 1,000."""

_SHARING = 4
"""As many processes may share the cores of a CPU, however few these are."""

# the best epoch by the monitored metric, and the last one, to resume from
CHECKPOINT = {
    "checkpoint.monitor": "val/score",
    "checkpoint.mode": "max",
    "checkpoint.filename": "best",
    "checkpoint.save_last": True,
    "checkpoint.enable_version_counter": False,
}

SILENCED = (
    *("does not have many workers", "exists and is not empty", "treespec, LeafSpec"),
    # torchmetrics has put together what the processes log: a further mean would only round it
    "recommended to use `self.log.*sync_dist=True",
    "LightningCLI's args parameter",  # a recipe becomes options before the parser sees them
)
"""Warnings of libraries that tell users of fmerge nothing, as regular expressions."""


def with_length(config: dict[str, Any]) -> dict[str, Any]:
    """Gives a fit a length where it has none, and says so.

    Args:
        config: The Trainer's options.

    Returns:
        The options, with ``EPOCHS`` where no epochs, steps or time are given.
    """
    given = config.get("max_epochs") is not None or config.get("max_steps", -1) != -1
    if given or config.get("max_time") or config.get("fast_dev_run"):
        return config
    say(f"fit: {EPOCHS} epochs, as no length is given; --trainer.max_epochs sets it")
    return {**config, "max_epochs": EPOCHS}


def check_devices(config: dict[str, Any]) -> None:
    """Refuses more processes than a machine without GPUs has cores for.

    Args:
        config: The Trainer's options.

    Raises:
        UserError: If there are more; a few may share a core.
    """
    given = str(config.get("devices"))
    accelerator = config.get("accelerator")
    on_cpu = accelerator == "cpu" or (
        accelerator in {None, "auto"} and not torch.accelerator.is_available()
    )
    cores = os.cpu_count() or 1
    if on_cpu and given.isdigit() and int(given) > max(cores, _SHARING):
        raise UserError(
            f"--trainer.devices: is {given}, but on a CPU each is a process, and this machine has "
            f"{cores} cores; give at most {max(cores, _SHARING)}"
        )


def say(line: str) -> None:
    """Prints a line, from the first process alone.

    Args:
        line: The line.
    """
    if getattr(rank_zero_only, "rank", 0) == 0:
        sys.stdout.write(f"{line}\n")
