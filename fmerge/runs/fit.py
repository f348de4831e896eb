"""What a fit leaves in its folder beside Lightning's checkpoints."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from fmerge.modules import TaskModule
from fmerge.store import SavedForm, form_of, load_lightning, write_text


class ConfigWriter(Callback):
    """Writes the configuration once training starts: data and weights were readable.

    Args:
        output: The fit's folder.
        config: The resolved configuration; None where it is not known.
    """

    def __init__(self, output: Path, config: str | None) -> None:
        self.output = output
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes ``config.yaml``.

        Args:
            trainer: The Trainer; required by Lightning.
            pl_module: The model; required by Lightning.
        """
        if self.config is not None:
            write_text(self.output / "config.yaml", self.config)


def save_experts(trainer: Trainer, model: TaskModule, output: Path) -> None:
    """Writes the best epoch's networks as Hugging Face folders.

    Args:
        trainer: The Trainer that has fitted the model.
        model: The model.
        output: The fit's folder.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if trainer.is_global_zero:
        if best:
            model.load_state_dict(load_lightning(Path(best))["state_dict"])
        if trainer.precision == "64-true":
            model.float()  # the precision that models are read in
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
