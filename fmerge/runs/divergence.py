"""Ends a fit that has diverged: no expert is made of weights that are not numbers."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fmerge.errors import UserError

_EVERY = 20
"""Steps between two looks at the losses where a look makes a device or other processes wait."""


class DivergenceGuard(Callback):
    """Raises an error once a training loss, the validation loss or a weight is not finite.

    No checkpoint is saved after the step at which it happened.
    """

    def __init__(self) -> None:
        # step from 1, epoch, batch, loss: of the steps since the last look
        self._recent: list[tuple[int, int, int, Tensor]] = []

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Looks at the loss, in each step on a CPU and every few steps elsewhere.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
            outputs: What ``training_step`` returned.
            batch: The batch; required by Lightning.
            batch_idx: The batch's index.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):  # a step that was skipped has none
            return
        step = trainer.fit_loop.total_batch_idx + 1
        self._recent.append((step, trainer.current_epoch, batch_idx, loss.detach()))
        cheap = loss.device.type == "cpu" and trainer.world_size == 1
        if cheap or len(self._recent) >= _EVERY:
            self._look(trainer, together=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the losses before a validation.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
        """
        self._look(trainer, together=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the validation loss of a task module.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
        """
        loss = trainer.callback_metrics.get("val/loss")
        if not trainer.sanity_checking and loss is not None and loss.isnan().any():
            _diverged(trainer, f"the validation loss is nan after step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the losses before the checkpoint of an epoch is saved.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
        """
        self._look(trainer, together=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Looks at the losses before any checkpoint is saved.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
            checkpoint: The checkpoint; required by Lightning.
        """
        self._look(trainer, together=False)  # one process alone may save after an error

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the weights, which the last step may have spoilt after its loss was computed.

        Args:
            trainer: The Trainer.
            pl_module: The module.
        """
        self._look(trainer, together=True)
        for name, weight in pl_module.named_parameters():
            if not weight.isfinite().all():
                step = trainer.global_step
                _diverged(trainer, f"the weights '{name}' are not finite after step {step}")

    def _look(self, trainer: Trainer, together: bool) -> None:
        """Reads the recent losses, which waits for the device; all processes end alike."""
        found = [
            (step, epoch, index, value)
            for step, epoch, index, loss in self._recent
            if not math.isfinite(value := float(loss.sum()))
        ]
        last = self._recent[-1][0] if self._recent else 0
        self._recent.clear()
        if found:
            step, epoch, index, value = found[0]
            reason = f"the loss is {value} at step {step} (epoch {epoch}, batch {index})"
        else:
            reason = f"the loss of another process is not finite, at step {last} or before"
        several = together and trainer.world_size > 1
        bad = bool(found)
        # every process takes part in the reduction, also one that has found its own loss bad
        if several:
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            _diverged(trainer, reason)


def _diverged(trainer: Trainer, reason: str) -> NoReturn:
    rate = getattr(trainer.lightning_module, "learning_rate", None)
    given = "" if rate is None else f" (it is {rate})"
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    before = f"; the best epoch before it is in {best}" if best else ""
    raise UserError(
        f"fit: {reason}: the training has diverged, and no expert is saved; lower "
        f"--model.learning_rate{given}, or set --trainer.gradient_clip_val{before}"
    )
