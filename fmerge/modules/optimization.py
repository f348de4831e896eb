"""AdamW and its learning rate schedule, which all task modules use."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import nn

from fmerge.errors import check_within

Scheduler = Literal["linear", "cosine", "constant"]


def check_numbers(
    learning_rate: float, weight_decay: float, warmup_fraction: float, max_length: int = 1
) -> None:
    """Checks the training options of a task module.

    Args:
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        warmup_fraction: Share of the steps.
        max_length: Tokens of an input, of modules that read texts.

    Raises:
        UserError: If one is out of its range.
    """
    check_within("--model.learning_rate", learning_rate, "(0, inf)")
    check_within("--model.weight_decay", weight_decay, "[0, inf)")
    check_within("--model.warmup_fraction", warmup_fraction, "[0, 1]")
    check_within("--model.max_length", max_length, "[1, inf)")


def adamw(
    trainer: Trainer,
    parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rate: float,
    weight_decay: float,
    scheduler: Scheduler,
    warmup_fraction: float,
) -> Any:
    """Makes AdamW and its schedule.

    Args:
        trainer: The Trainer of the fit, which gives the number of steps.
        parameters: What is trained, by its names in checkpoints; Adam's state has them too.
        learning_rate: The peak.
        weight_decay: On matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the steps over which the learning rate rises from 0.

    Returns:
        Lightning's dictionary of an optimizer and a schedule by step.
    """
    from transformers import get_scheduler

    # weight decay would pull biases and the scales of normalization layers to zero
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [one for one in parameters if one[1].ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one[1].ndim <= 1], "weight_decay": 0.0},
    ]
    # under 16-mixed Lightning refuses to clip gradients of a fused optimizer, which unscales them
    fused = trainer.precision != "16-mixed"
    # some models have matrices alone; an empty group has no names, which AdamW then refuses
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    steps = int(trainer.estimated_stepping_batches)
    kind = "constant_with_warmup" if scheduler == "constant" else scheduler
    warmup = int(warmup_fraction * steps)
    schedule = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step"},
    }
