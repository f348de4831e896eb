"""What a fit needs to begin, and what it leaves beside Lightning's checkpoints."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from fmerge.errors import UserError
from fmerge.modules import TaskModule
from fmerge.modules.sharding import make_whole
from fmerge.params import check_finite, params_of
from fmerge.runs.fit_callbacks import is_averaged
from fmerge.store import SavedForm, check_place, form_of, load_lightning, write_text
from fmerge.system.fsdp2 import is_split


class ConfigWriter(Callback):
    """Writes the configuration once training starts: data and weights were readable.

    Args:
        output: The fit's folder.
        config: The resolved configuration.
        fresh: Whether the fit begins anew: an expert that is there is of another run.
    """

    def __init__(self, output: Path, config: str, fresh: bool) -> None:
        self.output = output
        self.config = config
        self.fresh = fresh

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes ``config.yaml``, and removes the expert of the run that is overwritten.

        Args:
            trainer: The Trainer; required by Lightning.
            pl_module: The model; required by Lightning.
        """
        if self.fresh:
            shutil.rmtree(self.output / "expert", ignore_errors=True)
        write_text(self.output / "config.yaml", self.config)


def check_limits(trainer: Trainer) -> None:
    """Checks that a fit will train at all.

    Args:
        trainer: The Trainer.

    Raises:
        UserError: If its limits leave no step.
    """
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        value = getattr(trainer, name)
        if value is not None and value == 0 and not math.isinf(value):
            raise UserError(
                f"--trainer.{name}: is {value}, so nothing would be trained; give a larger number"
            )


def check_places(trainer: Trainer, output: Path | None) -> None:
    """Checks where checkpoints go, and puts them into the output folder if they have no place.

    Args:
        trainer: The Trainer.
        output: The fit's folder, if it has one.
    """
    for one in trainer.checkpoint_callbacks:
        if not isinstance(one, ModelCheckpoint):
            continue
        if one.dirpath is not None and "://" not in str(one.dirpath):
            check_place(Path(one.dirpath), "--checkpoint.dirpath", writable=True)
        elif output is not None:
            one.dirpath = str(output.absolute() / "checkpoints")
    if output is None and "://" not in trainer.default_root_dir:
        root = Path(trainer.default_root_dir)
        check_place(root, "--trainer.default_root_dir", writable=True)


def save_experts(trainer: Trainer, model: TaskModule, output: Path) -> None:
    """Writes the best epoch's networks as Hugging Face folders, or the average of epochs.

    Args:
        trainer: The Trainer that has fitted the model.
        model: The model.
        output: The fit's folder.

    Raises:
        UserError: If no step was made, or the weights are not finite.
    """
    if trainer.global_step == 0:
        raise UserError(
            "fit: no training step was made, so no expert is saved; raise --trainer.max_epochs, "
            "max_steps or max_time"
        )
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    state: Mapping[str, Any] | None = None
    if is_split(trainer) and not best:
        state = trainer.strategy.lightning_module_state_dict()  # put together by all processes
    if trainer.is_global_zero:
        if is_split(trainer):
            make_whole(model)
        # checkpoints hold the weights that were averaged, not their average
        if best and not is_averaged(trainer, model):
            state = load_lightning(Path(best))["state_dict"]
        if state is not None:
            model.load_state_dict(state)
        if trainer.precision == "64-true":
            model.float()  # the precision that models are read in
        check_finite(params_of(model), best or "the fitted model")
        path = getattr(model, "path", None)
        if path:
            # the dtypes are those that it was trained in: rounded to the base's, the weights of a
            # fit in float32 would lose most of what they learnt
            model.forms = {"": SavedForm(folder=form_of(path).folder)}
        model.save(output / "expert")
        Console().print(f"Expert: {output / 'expert'}", soft_wrap=True, highlight=False)
    trainer.strategy.barrier("the expert is written")


def say_unsaved(trainer: Trainer) -> None:
    """Says where a fit without an output folder saved its weights.

    Args:
        trainer: The Trainer that has fitted.
    """
    last = getattr(trainer.checkpoint_callback, "last_model_path", "")
    where = f"; its checkpoint: {last}" if last else ""
    Console().print(
        f"No expert was saved, as --output is not set{where}", soft_wrap=True, highlight=False
    )
