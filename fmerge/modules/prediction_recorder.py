"""What a model answered to each example of a test, kept while Lightning scores it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed

Outcomes = dict[str, tuple[Tensor, Tensor]]
"""Task name to predictions (n,) and what they are compared with (n,), on the CPU."""


@final
class OutcomeRecorder(Callback):
    """Keeps predictions and targets of the last ``Trainer.test``, from what ``test_step`` returns.

    The loaders of ``MultiTask`` give every example once and in one order, whatever the model: the
    outcomes of two models are pairs.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what an earlier pass, perhaps one that ran out of memory, has left.

        Args:
            trainer: Not used.
            pl_module: Not used.
        """
        self._pieces = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's outcomes, where the module's ``test_step`` gives any.

        Args:
            trainer: Not used.
            pl_module: Not used.
            outputs: What ``test_step`` returned.
            batch: One task's batch.
            batch_idx: Not used.
            dataloader_idx: Not used: the batch knows its task.
        """
        if isinstance(outputs, Mapping) and {"predictions", "targets"} <= outputs.keys():
            chunk = outputs["predictions"].detach().cpu(), outputs["targets"].detach().cpu()
            self._pieces.setdefault(batch["task"], []).append(chunk)

    def outcomes(self, trainer: Trainer) -> Outcomes:
        """Brings the outcomes of all processes together, in all of them.

        Args:
            trainer: The Trainer of the pass.

        Returns:
            The outcomes, in the order that one process has them in.
        """
        mine = {
            task: (torch.cat([one for one, _ in chunks]), torch.cat([two for _, two in chunks]))
            for task, chunks in self._pieces.items()
        }
        if trainer.world_size == 1:
            return mine
        parts: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(parts, mine)
        return {
            task: (
                _interleaved([part[task][0] for part in parts]),
                _interleaved([part[task][1] for part in parts]),
            )
            for task in mine
        }


@contextmanager
def recording(trainer: Trainer) -> Iterator[OutcomeRecorder]:
    """Keeps what is answered in the tests of a block.

    Args:
        trainer: The Trainer that tests.

    Yields:
        The recorder.
    """
    recorder = OutcomeRecorder()
    trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
    try:
        yield recorder
    finally:
        trainer.callbacks.remove(recorder)  # type: ignore[attr-defined]


def _interleaved(parts: list[Tensor]) -> Tensor:
    """Undoes the sampler, which deals examples to the processes in turn."""
    whole = torch.empty(sum(map(len, parts)), dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole
