"""Callbacks that every fit has: when weights are read, and which checkpoints there are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.trainer import call

from fmerge.errors import UserError
from fmerge.modules import TaskModule


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


class WeightsFirst(Callback):
    """Reads a task module's weights before other callbacks see the module.

    Lightning calls ``configure_model`` after the callbacks' ``setup``, in which some of them copy
    the module, freeze parts of it or prune it: a module without weights as yet would be copied.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Calls ``configure_model``, as Lightning does.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            stage: Which command it is; required by Lightning.
        """
        # of other modules configure_model may need what their own setup makes
        if isinstance(pl_module, TaskModule):
            call._call_configure_model(trainer)

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
