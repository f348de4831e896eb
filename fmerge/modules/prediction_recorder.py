"""The predictions of a test, recorded example by example while Lightning scores them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fmerge.system.distributed import gather, in_dataset_order

Predictions = dict[str, tuple[Tensor, Tensor]]
"""Task name to predictions (n,) and the targets (n,) they are compared with, on the CPU."""


@final
class PredictionRecorder(Callback):
    """Records predictions and targets of the last ``Trainer.test``, as ``test_step`` returns them.

    The loaders of ``MultiTask`` give every example once and in one order, whatever the model.
    The predictions of two models are therefore pairs, which a paired test can compare.
    """

    def __init__(self) -> None:
        self._batches: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discards what an earlier pass recorded.

        Args:
            trainer: The Trainer; required by Lightning.
            pl_module: The tested module; required by Lightning.
        """
        # a pass that ran out of memory is repeated: its first batches must not count twice
        self._batches = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Records a batch, where the module's ``test_step`` returns predictions and targets.

        Args:
            trainer: The Trainer; required by Lightning.
            pl_module: The tested module; required by Lightning.
            outputs: What ``test_step`` returned.
            batch: One task's batch.
            batch_idx: The batch's index; required by Lightning.
            dataloader_idx: The loader's index; required by Lightning. The batch names its task.
        """
        if isinstance(outputs, Mapping) and {"predictions", "targets"} <= outputs.keys():
            # on the CPU: a whole test may be too large for the device
            recorded = outputs["predictions"].detach().cpu(), outputs["targets"].detach().cpu()
            self._batches.setdefault(batch["task"], []).append(recorded)

    def predictions(self, trainer: Trainer) -> Predictions:
        """Collects the predictions of all processes, in each of them.

        Args:
            trainer: The Trainer of the pass.

        Returns:
            Predictions and targets, in the order of the data set.
        """
        own = {
            task: (torch.cat([one for one, _ in pairs]), torch.cat([two for _, two in pairs]))
            for task, pairs in self._batches.items()
        }
        shares = gather(trainer, own)
        return {
            task: (
                in_dataset_order([share[task][0] for share in shares]),
                in_dataset_order([share[task][1] for share in shares]),
            )
            for task in own
        }


@contextmanager
def record_predictions(trainer: Trainer) -> Iterator[PredictionRecorder]:
    """Records the predictions of the tests inside a block.

    Args:
        trainer: The Trainer that tests.

    Yields:
        The recorder.
    """
    recorder = PredictionRecorder()
    trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
    try:
        yield recorder
    finally:
        trainer.callbacks.remove(recorder)  # type: ignore[attr-defined]
