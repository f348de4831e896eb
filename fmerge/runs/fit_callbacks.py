"""Callbacks that every fit has: when weights are read, and which checkpoints there are."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.trainer import call

from fmerge.errors import UserError
from fmerge.modules import TaskModule
from fmerge.modules.sharding import shard
from fmerge.store import check_resume
from fmerge.system.distributed import gather
from fmerge.system.fsdp2 import is_split, mesh_of
from fmerge.system.paths import expand


@contextmanager
def with_callbacks(
    trainer: Trainer, first: Sequence[Callback] = (), last: Sequence[Callback] = ()
) -> Iterator[None]:
    """Adds callbacks to a Trainer for one run.

    Args:
        trainer: The Trainer.
        first: Callbacks whose hooks come before those of all others.
        last: Callbacks whose hooks come after them.

    Yields:
        Nothing.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [*first, *callbacks, *last]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        ours = [*first, *last]
        trainer.callbacks = [  # type: ignore[attr-defined]
            one
            for one in trainer.callbacks  # type: ignore[attr-defined]
            if all(one is not own for own in ours)
        ]


def checked_resume(trainer: Trainer, ckpt_path: str | None) -> str | None:
    """Checks a checkpoint where one node can: on several, ``WeightsFirst`` does so on all.

    Args:
        trainer: The Trainer that resumes from it.
        ckpt_path: The checkpoint, if any.

    Returns:
        Its path without ``~`` and variables.
    """
    path = None if ckpt_path is None else expand(ckpt_path)
    if trainer.num_nodes == 1:  # an error of one node alone would let the others wait for it
        check_resume(path)
    return path


def _check_nodes(trainer: Trainer, path: str | None) -> None:
    """Checks that all nodes resume from the same checkpoint."""
    problem, size = "", 0
    try:
        check_resume(path)
        size = Path(path).stat().st_size if path and Path(path).is_file() else 0
    except (UserError, OSError) as error:
        problem = str(error)
    everywhere = gather(trainer, (socket.gethostname(), problem, str(path), size))
    host, first = everywhere[0][0], everywhere[0][2:]
    for other, problem, *rest in everywhere:
        if problem or tuple(rest) != first:
            problem = problem or f"{rest[0]} has {rest[1]} bytes, {first[0]} on {host} {first[1]}"
            raise UserError(
                f"on node {other}: {problem}; all nodes resume from one checkpoint: put --output "
                "and the checkpoint into a folder that they share"
            )


class WeightsFirst(Callback):
    """Reads a task module's weights before other callbacks see the module.

    Lightning calls ``configure_model`` after the callbacks' ``setup``, in which some of them copy
    the module, freeze parts of it or prune it: a module without weights as yet would be copied.

    Args:
        ckpt_path: The checkpoint that is resumed from, if any.
    """

    def __init__(self, ckpt_path: str | None = None) -> None:
        self._ckpt_path = ckpt_path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Calls ``configure_model``, as Lightning does, once nodes agree on the checkpoint.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            stage: Which command it is.
        """
        # one node alone may see a checkpoint of a requeued fit
        if trainer.num_nodes > 1 and (self._ckpt_path is not None or stage == "fit"):
            _check_nodes(trainer, self._ckpt_path)
        # of other modules configure_model may need what their own setup makes
        if isinstance(pl_module, TaskModule):
            call._call_configure_model(trainer)
            if (mesh := mesh_of(trainer)) is not None:
                shard(pl_module, mesh)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a callback that has copied the module before it had its weights.

        Args:
            trainer: The Trainer.
            pl_module: The module.

        Raises:
            UserError: If there is one.
        """
        own = sum(1 for _ in pl_module.parameters())
        for one in averaging(trainer):
            copied = one._average_model
            if copied is not None and sum(1 for _ in copied.parameters()) != own:
                raise UserError(
                    f"--trainer.callbacks: {type(one).__name__} has copied "
                    f"{type(pl_module).__name__} before configure_model made its weights, so it "
                    "would average nothing; make them in the constructor, or leave it out"
                )


class InStep(Callback):
    """Lets processes that a model is split over score equally many batches.

    All of them take part whenever a part of the model is put together. Those with fewer batches
    repeat their last one in the end, without adding it to the scores.
    """

    def __init__(self) -> None:
        self._missing = 0
        self._last: Any = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the batches of all processes.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
        """
        self._count(trainer, trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the batches of all processes.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
        """
        self._count(trainer, trainer.num_test_batches)

    def _count(self, trainer: Trainer, batches: Sequence[int | float]) -> None:
        self._missing, self._last = 0, None
        if is_split(trainer):
            numbers = gather(trainer, int(sum(batches)))
            self._missing = max(numbers) - numbers[trainer.global_rank]
            if min(numbers) == 0 < max(numbers):
                raise UserError(
                    f"--trainer.devices: there are fewer examples than the {len(numbers)} "
                    "processes; use fewer"
                )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch, if it may be repeated.

        Args:
            trainer: The Trainer; required by Lightning.
            pl_module: The module; required by Lightning.
            outputs: What the step returned; required by Lightning.
            batch: The batch.
            batch_idx: Its index; required by Lightning.
            dataloader_idx: The loader's index; required by Lightning.
        """
        self._last = batch if self._missing else None

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Repeats the last batch as often as other processes have more.

        Args:
            trainer: The Trainer; required by Lightning.
            pl_module: The module.
        """
        for _ in range(self._missing):
            pl_module.outcome(self._last)  # type: ignore[operator]
        self._last = None

    on_test_epoch_end = on_validation_epoch_end


class LastEpoch(Checkpoint):
    """Saves ``last.ckpt`` after every epoch.

    Lightning saves it only after epochs whose score was among the best.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves it, where the epoch was not saved.

        Args:
            trainer: The Trainer.
            pl_module: The module; required by Lightning.
        """
        for one in trainer.checkpoint_callbacks:
            if not isinstance(one, ModelCheckpoint) or one.save_last is not True:
                continue
            every = one.every_n_epochs or 0  # 0: it counts steps or time instead
            due = every > 0 and (trainer.current_epoch + 1) % every == 0
            if due and not one._should_skip_saving_checkpoint(trainer):
                one._save_last_checkpoint(trainer, one._monitor_candidates(trainer))


def first_callbacks(ckpt_path: str | None) -> list[Callback]:
    """Makes the callbacks of every fit, validation and test.

    Args:
        ckpt_path: The checkpoint that is resumed from, if any.

    Returns:
        Callbacks whose hooks come before those of all others.
    """
    return [WeightsFirst(ckpt_path), InStep()]


def averaging(trainer: Trainer) -> list[StochasticWeightAveraging]:
    """Finds the callbacks that put an average of epochs in place of the weights.

    Args:
        trainer: The Trainer.

    Returns:
        Those of ``StochasticWeightAveraging``, whose checkpoints do not hold the average.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [one for one in callbacks if isinstance(one, StochasticWeightAveraging)]


def is_averaged(trainer: Trainer, module: LightningModule) -> bool:
    """Tells whether a fit has ended with an average of epochs as the module's weights.

    Args:
        trainer: The Trainer that has fitted it.
        module: The module.

    Returns:
        Whether it has; not if training ended before the average was complete.
    """
    for one in averaging(trainer):
        copied = one._average_model
        if copied is not None and one.n_averaged is not None and int(one.n_averaged) > 0:
            pairs = zip(copied.parameters(), module.parameters(), strict=True)
            if all(bool((a.to(b.device) == b).all()) for a, b in pairs):
                return True
    return False
