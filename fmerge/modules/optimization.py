"""AdamW and the course of its learning rate, as every task module trains."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import nn

Scheduler = Literal["linear", "cosine", "constant"]


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
        trainer: The Trainer of the fit, which knows how many steps there will be.
        parameters: What is trained, by the names that checkpoints have, which Adam's state keeps.
        learning_rate: The peak.
        weight_decay: On matrices only.
        scheduler: How the learning rate goes on after the warm-up.
        warmup_fraction: Share of the steps over which the learning rate rises from 0.

    Returns:
        Lightning's dictionary of an optimizer and a schedule by step.
    """
    from transformers import get_scheduler

    parameters = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [one for one in parameters if one[1].ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one[1].ndim <= 1], "weight_decay": 0.0},
    ]
    # Lightning clips no gradients of a fused optimizer under 16-mixed
    fused = trainer.precision != "16-mixed"
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    steps = int(trainer.estimated_stepping_batches)
    kind = "constant_with_warmup" if scheduler == "constant" else scheduler
    warmup = int(warmup_fraction * steps)
    schedule = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step"},
    }
