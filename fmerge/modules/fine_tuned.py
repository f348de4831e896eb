"""The base of modules whose weights are read from a path and fine-tuned."""

from abc import ABC
from typing import Any

from fmerge.errors import UserError
from fmerge.modules.base import TaskModule
from fmerge.modules.optimization import Scheduler, adamw, check_numbers


class FineTuned(TaskModule, ABC):
    """A task module whose weights are read from a path, and fine-tuned by AdamW.

    Attributes:
        path: Where the weights are, if that is known.
    """

    path: str | None

    def take_options(
        self,
        path: str | None,
        learning_rate: float,
        weight_decay: float,
        scheduler: Scheduler,
        warmup_fraction: float,
    ) -> None:
        """Takes the options of a fit.

        Args:
            path: Where the weights are.
            learning_rate: Peak learning rate of AdamW.
            weight_decay: Weight decay of AdamW, on matrices only.
            scheduler: How the learning rate changes after the warm-up.
            warmup_fraction: Share of the training steps over which the learning rate rises from 0.

        Raises:
            UserError: If a number is out of its range.
        """  # noqa: DOC502 - what is called raises it
        check_numbers(learning_rate, weight_decay, warmup_fraction)
        self.path = path
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.scheduler = scheduler
        self.warmup_fraction = warmup_fraction

    @property
    def given_path(self) -> str:
        """The path.

        Raises:
            UserError: If there is none.
        """
        if not self.path:
            raise UserError(
                "--model.path: is not set; give a Hugging Face folder, a hub id or "
                "package:name/folder"
            )
        return self.path

    def configure_optimizers(self) -> Any:
        """Makes AdamW and its schedule.

        Returns:
            Lightning's dictionary of an optimizer and a schedule by step.
        """
        return adamw(
            self.trainer,
            self.named_parameters(),
            self.learning_rate,
            self.weight_decay,
            self.scheduler,
            self.warmup_fraction,
        )
