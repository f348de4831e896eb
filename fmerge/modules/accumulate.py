"""The Fisher pass as a LightningModule, to be run by the public ``Trainer.predict``."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from fmerge.fisher import Estimator, FisherAccumulator, FisherEstimate
from fmerge.modules.base import TaskModule


@final
class FisherPass(LightningModule):
    """Accumulates one task's diagonal Fisher on Lightning's device, precision and processes.

    ``Trainer.predict`` gives the module without a DDP wrapper, and each example to one process
    alone; the sums and the count are added over the processes at the end.

    Args:
        module: The task module, whose weights are where the Fisher is taken.
        task: The task, whose shared body and head are differentiated.
        estimator: Which answers enter.
        samples: Draws per example of ``sampled``, backward passes of ``rademacher``.
        seed: Seed of those draws.

    Attributes:
        estimate: The Fisher, once the pass has ended.
    """

    estimate: FisherEstimate

    def __init__(
        self, module: TaskModule, task: str, estimator: Estimator, samples: int, seed: int
    ) -> None:
        super().__init__()
        self.module = module
        self.task = task
        self._settings: tuple[Estimator, int, int] = (estimator, samples, seed)
        self._accumulator: FisherAccumulator | None = None

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Makes a batch as the task module does.

        Args:
            examples: n examples.
            task: The task's name.

        Returns:
            The batch.
        """
        return self.module.collate(examples, task)

    def on_predict_start(self) -> None:
        """Starts the sums at zero, on the module's device."""
        if self._accumulator is not None:
            self._accumulator.reset()  # the same module on other weights needs no new checks
            return
        with torch.inference_mode(False):
            self._accumulator = FisherAccumulator(
                self.module.task_model(self.task), self.module.label_log_probs, *self._settings
            )

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Adds a batch.

        Args:
            batch: One batch of the task.
            batch_idx: Not used.
            dataloader_idx: Not used.

        Returns:
            The number of examples.
        """
        accumulator = self._running
        with torch.inference_mode(False), torch.enable_grad():
            # tensors made in inference mode cannot be saved for a backward pass
            batch = apply_to_collection(batch, Tensor, torch.clone)
            # the unrepeated sampler deals the examples out to the processes in turn
            ranks, rank = self.trainer.world_size, self.trainer.global_rank
            n, seen = len(batch["labels"]), accumulator.count
            return accumulator.add(batch, [rank + (seen + i) * ranks for i in range(n)])

    def on_predict_epoch_end(self) -> None:
        """Adds sums and counts over the processes and forms the estimate."""
        accumulator = self._running
        strategy = self.trainer.strategy
        count = strategy.reduce(
            torch.tensor(float(accumulator.count), device=self.device), reduce_op="sum"
        )
        for name in sorted(accumulator.sums):
            accumulator.sums[name] = strategy.reduce(accumulator.sums[name], reduce_op="sum")
        accumulator.count = int(count)
        self.estimate = accumulator.estimate()

    @property
    def _running(self) -> FisherAccumulator:
        if self._accumulator is None:
            raise RuntimeError("FisherPass runs under Trainer.predict only")
        return self._accumulator
