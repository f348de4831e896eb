"""What a command takes where nothing is given, and how it says so."""

import sys
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

EPOCHS = 3
"""Of a fit whose length is not given; Lightning's own default is 1,000."""

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


def say(line: str) -> None:
    """Prints a line, from the first process alone.

    Args:
        line: The line.
    """
    if getattr(rank_zero_only, "rank", 0) == 0:
        sys.stdout.write(f"{line}\n")
