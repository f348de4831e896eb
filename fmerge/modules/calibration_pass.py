"""The calibration of a merged network as a LightningModule, to be run by ``Trainer.predict``."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.fisher.batches import batch_size
from fmerge.methods.calibrated import Calibrated
from fmerge.modules.base import TaskModule
from fmerge.modules.fitted_layers import (
    batch_norms,
    borrowing,
    fitted_layers,
    state_of,
)
from fmerge.modules.layer_inputs import Progress, run_up_to, tapped
from fmerge.modules.layer_order import Level, levels_of
from fmerge.modules.level_fits import BatchNormLevel, Bodies, LinearLevel, NormLevel
from fmerge.modules.level_sums import ChannelSums, InputSums, Rows
from fmerge.modules.token_masks import (
    has_decoder,
    masks_of_batch,
    rows_of,
    with_distinct_lengths,
)
from fmerge.params import Params, write_params
from fmerge.system.memory import free_memory

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Batch:
    """A batch that is run again at every level.

    Attributes:
        inputs: What the module reads.
        masks: Of its positions; None where it has no text.
        size: Its examples.
    """

    inputs: Mapping[str, Any]
    masks: Sequence[Tensor] | None
    size: int


@final
class CalibrationPass(LightningModule):
    """Fits a merged network's layers, in forward order, to those of its experts.

    ``Trainer.predict`` gives each example to one process. The batches are kept, and run again for
    each level of layers: up to the level in the merged network, whose earlier layers are fitted
    by then, and where x̃ needs it in the expert's. Only one level's sums are held. They are added
    over the processes, and the first process fits.

    Args:
        module: The task module; its networks must have the start's body.
        method: How layers are fitted; None computes the running statistics of batch norms alone.
        tasks: Expert's name to the task on whose examples it is asked.
        bodies: The experts', the start's and the base's.
        solving: Whether layers are fitted; False only measures what the examples cost.

    Attributes:
        fitted: The names of the fitted tensors to their new values, once the pass has ended.
        skipping: Whether finished blocks are not run again; their outputs are kept instead.
    """

    fitted: Params

    def __init__(
        self,
        module: TaskModule,
        method: Calibrated | None,
        tasks: Mapping[str, str],
        bodies: Bodies,
        solving: bool = True,
    ) -> None:

        super().__init__()
        self.module = module
        self.method = method
        self.share = 0.0 if method is None else method.a
        self.tasks = tasks
        self.bodies = bodies
        self.solving = solving
        self.skipping = True
        network = self._network(next(iter(tasks.values())))
        self.has_decoder = has_decoder(network)
        self._batches: dict[str, list[_Batch]] = {task: [] for task in tasks.values()}
        self._progress: dict[tuple[str, bool, int], Progress] = {}
        self._verified: set[tuple[bool, tuple[str, ...]]] = set()

    @property
    def collate(self) -> Callable[[Sequence[Mapping[str, Any]], str], dict[str, Any]]:
        """The task module's own way to make a batch."""
        return self.module.collate

    def predict_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> int:
        """Keeps a batch.

        Args:
            batch: One batch of a task.
            batch_idx: The batch's index; required by Lightning.
            dataloader_idx: The loader's index; required by Lightning.

        Returns:
            The number of its examples.
        """
        size = batch_size(batch)
        batch = with_distinct_lengths(batch, self.has_decoder)
        masks = masks_of_batch(batch, self.has_decoder)
        self._batches[batch["task"]].append(_Batch(batch, masks, size))
        return size

    def on_predict_epoch_end(self) -> None:
        """Fits the layers."""
        self._room = _half_of_free(self.device)
        # not in inference mode: its tensors could not be written to later
        with torch.inference_mode(False), torch.no_grad():
            self.fitted = self._calibrate()
        self._batches, self._progress = {}, {}

    def _network(self, task: str) -> nn.Module:
        return self.module.task_model(task)

    def _calibrate(self) -> Params:
        task = next(iter(self.tasks.values()))
        network = self._network(task)
        left: list[str] = []
        layers = batch_norms(network, self.bodies.start)
        if self.method is not None:
            fitted, left = fitted_layers(network, self.bodies.start, self.method.norms)
            layers = [*fitted, *layers]
        plan: tuple[list[Level], list[str]] = ([], [])
        if self.trainer.is_global_zero:
            plan = levels_of(network, layers, partial(self._run, self._batches[task][0]))
        levels, uncalled = self.trainer.strategy.broadcast(plan)
        left += uncalled
        solved: Params = {}
        for level in levels:
            found = self._fit(level)
            if found is None:
                left += [layer.weight for layer in level.layers]
                continue
            for one in dict.fromkeys(self.tasks.values()):
                write_params(self._network(one), found)
            solved |= found
        self._tell(left, len(solved))
        return solved

    def _fit(self, level: Level) -> Params | None:
        """Fits one level: the new tensors, or None where positions of its inputs are unknown."""
        norm = level.layers[0].kind in {"norm", "batch norm"}
        fit = self._level_fit(level)
        experts = self.tasks
        if level.layers[0].kind == "batch norm":  # of each task once, whoever is asked about it
            experts = {task: task for task in self.tasks.values()}
        for name, task in experts.items():
            sums = self._norm_sums(level) if norm else self._input_sums(level)
            with self._expert(name, task, norm) as run_expert:
                for index, batch in enumerate(self._batches[task]):
                    rows = self._rows(level, (name, False, index), batch)
                    targets = {}
                    if self.share and not norm:
                        with run_expert():
                            targets = self._rows(level, (name, True, index), batch)
                    # autocast would multiply in half precision, whatever the dtype of the sums
                    with torch.autocast(self.device.type, enabled=False):
                        sums.add(rows, targets)
            found = sums.reduced(self._reduce)
            if found is None:
                return None
            if self.trainer.is_global_zero:
                fit.add(name, found)
        # the others receive: all have the same layers, bit for bit
        if not self.solving:
            return {one.weight: self.bodies.start[one.weight] for one in level.layers}
        solved: Params = fit.solve() if self.trainer.is_global_zero else {}
        return self.trainer.strategy.broadcast(solved)

    def _level_fit(self, level: Level) -> Any:
        if level.layers[0].kind == "batch norm":
            return BatchNormLevel(level)
        assert self.method is not None  # else there are no other levels
        kind = NormLevel if level.layers[0].kind == "norm" else LinearLevel
        return kind(level, self.method, self.bodies, self.device)

    def _input_sums(self, level: Level) -> InputSums:
        first = level.layers[0]
        inputs = first.matrix(self.bodies.start[first.weight]).shape[1]
        return InputSums(first.paths, inputs, self.share, self._like(first.weight))

    def _norm_sums(self, level: Level) -> ChannelSums:
        (layer,) = level.layers
        (path,) = layer.paths
        network = self._network(next(iter(self.tasks.values())))
        channels = len(self.bodies.start[layer.weight])
        batch = layer.kind == "batch norm"
        # a variance is a difference of large sums
        like = self._like(layer.weight, batch and self.device.type != "mps")
        return ChannelSums(path, None if batch else network.get_submodule(path), channels, like)

    def _like(self, name: str, double: bool = False) -> Tensor:
        double = double or (self.method is not None and self.method.double)
        wide = torch.float64 if double else torch.float32
        dtype = torch.promote_types(self.bodies.start[name].dtype, wide)
        return torch.zeros(0, dtype=dtype, device=self.device)

    @contextmanager
    def _expert(self, name: str, task: str, norm: bool) -> Iterator[Callable[[], Any]]:
        """An expert's body on the device; what is yielded lets the task's network run with it."""
        if norm or not self.share:
            yield nullcontext
            return
        own = state_of(self._network(task))
        body = {key: one.to(own[key]) for key, one in self.bodies.experts[name].items()}
        yield lambda: borrowing(own, body)

    def _rows(self, level: Level, key: tuple[str, bool, int], batch: _Batch) -> Rows:
        """What a level's layers read of a batch, in the merged network or in an expert's."""
        if not self.skipping:
            return self._read(level, batch, None)
        progress = self._progress.setdefault(key, Progress())
        skipped = tuple(progress.blocks)
        rows = self._read(level, batch, progress)
        if skipped and (key[1], skipped) not in self._verified:
            whole = self._read(level, batch, None)
            self._verified.add((key[1], skipped))
            self.skipping = _same(rows, whole)
            rows = whole
        if self.skipping and sum(one.size for one in self._progress.values()) > self._room:
            self.skipping = False
        if not self.skipping:
            self._progress.clear()
        return rows

    def _read(self, level: Level, batch: _Batch, progress: Progress | None) -> Rows:
        rows: Rows = {path: [] for path in tapped(level)}

        def take(path: str, layer: nn.Module, x: Tensor) -> None:
            rows[path].append(rows_of(layer, x, batch.masks, batch.size))

        network = self._network(batch.inputs["task"])
        run_up_to(network, level, partial(self._run, batch), take, progress)
        return rows

    def _run(self, batch: _Batch) -> None:
        with self.trainer.precision_plugin.predict_step_context():
            self.module.label_log_probs(batch.inputs)

    def _reduce(self, tensor: Tensor) -> Tensor:
        total: Tensor = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        return total

    def _tell(self, left: Sequence[str], fitted: int) -> None:
        name = "batch norm" if self.method is None else type(self.method).__name__
        if not fitted and self.method is not None:
            raise UserError(
                f"{name}: found no layer whose inputs have the shape of the "
                "batch's tokens; merge this architecture by another --method"
            )
        if left:
            rank_zero_only(_LOG.warning)(
                "%s leaves %d weights as the start merged them, such as '%s': they are not called, "
                "or their inputs do not have the shape of the batch's tokens, or they are no "
                "plain 2D convolutions",
                name, len(left), left[0],
            )  # fmt: skip


def _same(one: Rows, other: Rows) -> bool:
    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        if x is None or y is None:
            return x is y
        return x.shape == y.shape and bool(
            torch.isclose(x, y, rtol=0, atol=0, equal_nan=True).all()
        )

    return all(
        len(one[path]) == len(other[path]) and all(map(equal, one[path], other[path]))
        for path in one
    )


def _half_of_free(device: torch.device) -> float:
    memory = free_memory(device)
    return float("inf") if memory is None else memory.free / 2
