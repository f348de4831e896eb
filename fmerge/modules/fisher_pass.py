"""The Fisher pass as a LightningModule, to be run by the public ``Trainer.predict``."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.fisher import (
    FisherAccumulator,
    FisherEstimate,
    FisherSettings,
    Weighting,
    uniforms,
)
from fmerge.fisher.batches import batch_size
from fmerge.modules.base import TaskModule
from fmerge.modules.saving import Saving
from fmerge.modules.sharding import shard
from fmerge.modules.trainable import check_trainable
from fmerge.store import read_partial, write_partial
from fmerge.system.distributed import strided_indices
from fmerge.system.fsdp2 import is_split, mesh_of

if TYPE_CHECKING:
    from fmerge.fisher.engine.shards import Shards


@final
class FisherPass(LightningModule):
    """Accumulates one task's diagonal Fisher on Lightning's device, precision and processes.

    ``Trainer.predict`` runs the module without a DDP wrapper, and gives each example to one
    process. Processes meet only at the end, where sums and counts are added, and with ``until``.

    Args:
        module: The module, whose weights are where the Fisher is taken: a task module, or any
            LightningModule with ``label_log_probs(batch)`` (n, c).
        task: The task, whose shared body and head are differentiated.
        settings: How the pass estimates; which examples enter is up to its loader.

    Attributes:
        estimate: The Fisher, once the pass has ended.
        common_batches: How many batches every process has at least, for ``until``.
        saving: Where unfinished sums are saved, if anywhere.
    """

    estimate: FisherEstimate

    def __init__(self, module: LightningModule, task: str, settings: FisherSettings) -> None:
        super().__init__()
        self.module = module
        self.task = task
        self.settings = settings
        self.common_batches = 0
        self.saving: Saving | None = None
        self._accumulator: FisherAccumulator | None = None
        self._done = 0
        self._saved_at = 0.0
        self._enough = False
        self._steps = 0
        self._last: Any = None

    @property
    def collate(self) -> Callable[[Sequence[Mapping[str, Any]], str], dict[str, Any]]:
        """The module's own ``collate``.

        Raises:
            AttributeError: If it has none.
        """
        made: Callable[..., dict[str, Any]] = self.module.collate  # type: ignore[assignment]
        return made

    def configure_model(self) -> None:
        """Splits the module over the processes, under FSDP2."""
        if (mesh := mesh_of(self.trainer)) is not None:
            shard(self.module, mesh)

    def on_predict_start(self) -> None:
        """Sets the sums to zero on the module's device, or to those that were saved."""
        with torch.inference_mode(False):
            if self._accumulator is None:
                self._accumulator = self._make(is_split(self.trainer))
            else:
                self._accumulator.reset()  # the same module need not be checked again
            self._done, self._enough = 0, False
            self._check_shares()
            self._resume(self._accumulator)
        self._saved_at = time.monotonic()

    def _make(self, split: bool = False) -> FisherAccumulator:
        module, settings = self.module, self.settings
        network: nn.Module = module
        estimator: Weighting = settings.estimator
        if isinstance(module, TaskModule):
            network = module.task_model(self.task)
            check_trainable(network, self.task)
            module.check_estimator(self.task, settings.estimator)
            listed = module.lists_answers(self.task, settings.estimator)
            if not listed and estimator != "rademacher":
                estimator = "given"
        log_probs: Callable[[Any], Tensor] = module.label_log_probs  # type: ignore[assignment]
        if split:
            from fmerge.fisher.sharded import ShardedAccumulator

            return ShardedAccumulator(*(
                module,
                network,
                log_probs,
                estimator,
                settings.samples,
                settings.seed,
            ))
        return FisherAccumulator(
            network,
            log_probs,
            estimator,
            settings.samples,
            settings.seed,
            fallback=settings.fallback,
            errors=settings.errors,
        )

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Adds a batch.

        Args:
            batch: One batch of the task.
            batch_idx: Its position.
            dataloader_idx: The loader's index; required by Lightning.

        Returns:
            The number of examples added.

        Raises:
            StopIteration: If the Fisher is precise enough, which ends the Trainer's loop.
            SystemExit: If a signal asked to stop, after the sums are saved.
        """
        # a resumed pass: this batch is in the sums that were read back
        if batch_idx < self._done:
            self._last = batch if self._shards else None
            return 0
        if self._enough:
            raise StopIteration
        accumulator = self._running
        with torch.inference_mode(False), torch.enable_grad():
            # tensors made in inference mode cannot be saved for a backward pass; copies can
            batch = apply_to_collection(batch, Tensor, torch.clone)
            # draws follow an example's position in the data set: they are the same for any
            # number of processes, and after a resumption
            n = batch_size(batch)
            indices = strided_indices(self.trainer, accumulator.count, n)
            accumulator.add(self._with_answers(batch, indices), indices)
            self._done = batch_idx + 1
            self._save_now_and_then(accumulator)
            self._enough = self._is_enough(accumulator)
            self._last = batch if self._shards else None
        return n

    def on_predict_epoch_end(self) -> None:
        """Adds sums and counts over the processes and forms the estimate."""
        accumulator = self._running
        if self._shards is not None:
            self._keep_up(accumulator)
        strategy = self.trainer.strategy
        count = strategy.reduce(
            torch.tensor(float(accumulator.count), device=self.device), reduce_op="sum"
        )
        # sorted: all processes must reduce the tensors in one order
        for name in sorted(accumulator.sums) if self._shards is None else ():
            accumulator.sums[name] = strategy.reduce(accumulator.sums[name], reduce_op="sum")
        accumulator.count = int(count)
        if (spread := accumulator.spread) is not None:
            spread.set_numbers(self._reduced(spread.numbers()))
            for square in (spread.squares or {}).values():
                square.copy_(strategy.reduce(square, reduce_op="sum"))
        self.estimate = self._with_fixed(accumulator.estimate())

    @property
    def _shards(self) -> "Shards | None":
        """This process's shares of the parameters, under FSDP2."""
        return None if self._accumulator is None else self._accumulator.shards

    def _check_shares(self) -> None:
        """Counts the batches that all processes run, of which this one may have fewer."""
        if (shards := self._shards) is None:
            return
        own = sum(int(n) for n in self.trainer.num_predict_batches)
        self._steps = shards.most(own)
        if shards.any(own == 0):
            raise UserError(
                f"--trainer.devices: task '{self.task}' has fewer examples than the "
                f"{self.trainer.world_size} processes; use fewer"
            )

    def _keep_up(self, accumulator: Any) -> None:
        """Takes part in batches of other processes, once this one has no more."""
        with torch.inference_mode(False), torch.enable_grad():
            batch = apply_to_collection(self._last, Tensor, torch.clone)
            indices = range(batch_size(batch))
            while self._done < self._steps:
                answered = self._with_answers(batch, indices)
                accumulator.add(answered, indices, counted=False)
                self._done += 1
                self._save_now_and_then(accumulator)
        self._last = None

    def _with_fixed(self, found: FisherEstimate) -> FisherEstimate:
        """Adds zeros for parameters that an architecture never trains: no expert knows them."""
        if not isinstance(self.module, TaskModule) or not found.values:
            return found
        rest = self.module.task_model(self.task).named_parameters()
        fixed = {name: torch.zeros(one.shape) for name, one in rest if name not in found.values}
        errors = found.standard_errors
        return replace(
            found,
            values={**found.values, **fixed},
            standard_errors=None if errors is None else {**errors, **fixed},
        )

    def _with_answers(self, batch: Any, indices: Sequence[int]) -> Any:
        """Adds drawn answers to a batch of a task whose answers are too many to list."""
        module, settings = self.module, self.settings
        if not isinstance(module, TaskModule):
            return batch
        if module.lists_answers(self.task, settings.estimator):
            return batch
        each = module.numbers_per_draw(self.task)
        numbers = uniforms(indices, each * settings.samples, settings.seed)
        numbers = numbers.view(len(indices), settings.samples, each)
        with torch.no_grad():
            answers = module.draw_answers(batch, settings.estimator, numbers)
        return {**batch, "answers": answers}

    def _is_enough(self, accumulator: FisherAccumulator) -> bool:
        until, spread = self.settings.until, accumulator.spread
        # a reduction needs every process: it is left out once one of them has no batch left
        if until is None or spread is None or self._done > self.common_batches:
            return False
        everywhere = type(spread)()
        everywhere.set_numbers(self._reduced(spread.numbers()))
        return everywhere.enough(until)

    def _reduced(self, numbers: Tensor) -> Tensor:
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        moved = numbers.to(self.device, kind)
        summed: Tensor = self.trainer.strategy.reduce(moved, reduce_op="sum")
        return summed.cpu()

    def _resume(self, accumulator: FisherAccumulator) -> None:
        if self.saving is None:
            return
        state = read_partial(self.saving.path, self.saving.belongs_to)
        together = self.settings.until is not None or self._shards is not None
        if together and not self._is_same_everywhere(state):
            return
        if state is not None:
            self._done = int(state.pop("done"))
            accumulator.restore(state)
            rank_zero_info(f"{self.saving.path}: resuming after batch {self._done}")

    def _is_same_everywhere(self, state: Mapping[str, Tensor] | None) -> bool:
        """Whether all processes saved after the same batch, as ``until`` needs them in step."""
        done = torch.tensor(0.0 if state is None else float(state["done"]), dtype=torch.float64)
        moments = torch.stack([done, done**2, torch.ones_like(done)])
        total, squares, processes = self._reduced(moments).tolist()
        return bool(processes * squares == total**2)  # equal numbers have no variance

    def _save_now_and_then(self, accumulator: FisherAccumulator) -> None:
        if self.saving is None:
            return
        number = self.saving.stop()
        due = bool(number) or time.monotonic() - self._saved_at >= self.saving.seconds
        if (shards := self._shards) is not None:  # the shares of a sum are of one batch
            number, due = shards.most(number), shards.any(due)
        if not due:
            return
        state = accumulator.state() | {"done": torch.tensor(self._done)}
        write_partial(self.saving.path, self.saving.belongs_to, state)
        self._saved_at = time.monotonic()
        if number:
            raise SystemExit(128 + number)

    @property
    def _running(self) -> FisherAccumulator:
        if self._accumulator is None:
            raise RuntimeError("FisherPass runs under Trainer.predict only")
        return self._accumulator
