"""The base of modules that run one network for all tasks, without heads."""

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fmerge.errors import check_within
from fmerge.modules.optimization import Scheduler
from fmerge.modules.tokenized import TokenizedModule
from fmerge.params import Params, params_of
from fmerge.store import SavedForm, load_tokenizer, save_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class OneModel(TokenizedModule, ABC):
    """One network for all tasks, without heads: a language model, or one of embeddings.

    Args:
        path: Where the weights are: Hugging Face folder, hub id, or ``package:name/folder``
            inside an installed package. ``fisher`` and ``merge`` take them from the experts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
        max_length: Tokens to which an input is truncated, if the model takes as many.
    """

    def __init__(
        self,
        path: str | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        scheduler: Scheduler = "constant",
        warmup_fraction: float = 0.0,
        max_length: int = 512,
    ) -> None:
        super().__init__()
        self.take_options(path, learning_rate, weight_decay, scheduler, warmup_fraction)
        check_within("--model.max_length", max_length, "[1, inf)")
        self.save_hyperparameters()
        self.max_length = max_length
        self.model: PreTrainedModel | None = None

    def configure_model(self) -> None:
        """Reads the weights from ``path``, once."""
        if self.model is not None:
            return
        path = self.given_path
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        model: Any = self.read(path, "")
        self.adopt(dict.fromkeys(data.tasks, model), load_tokenizer(path))
        self.add_metrics(data.labels, data.metrics)

    def adopt(
        self,
        models: Mapping[str, "PreTrainedModel"],
        tokenizer: "PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase]",
    ) -> None:
        """Adopts the first of some models, for all tasks.

        Args:
            models: Task name to model; all but the first only name their tasks.
            tokenizer: The tokenizer they share, or task name to the tokenizer of each.
        """
        self.model = next(iter(models.values()))
        self.adopt_preprocessors(models, tokenizer)
        self.model.train()  # from_pretrained leaves eval mode, and Lightning would keep it in fit
        self.add_metrics(dict.fromkeys(models, ()), {})  # answers differ by example

    def body(self, model: nn.Module) -> Params:
        """Selects what a merge merges: everything.

        Args:
            model: A model that ``read`` gave.

        Returns:
            Parameter names to tensors that share memory with the model; tied ones once.
        """
        return params_of(model)

    def task_model(self, task: str) -> "PreTrainedModel":
        """Finds the model, which all tasks share.

        Args:
            task: The task's name; it makes no difference here.

        Returns:
            A Hugging Face model.
        """
        return self._ready

    def save(self, folder: Path, cards: Mapping[str, str] | None = None) -> None:
        """Writes the model as a Hugging Face folder.

        Args:
            folder: The model's folder.
            cards: Task name to model card, of which the first is written.
        """
        card = {"": next(iter(cards.values()))} if cards else None
        form = next(iter(self.forms.values()), SavedForm())
        save_models(folder, {"": self._ready}, self._saved_tokenizers(), card, {"": form})

    def _saved_tokenizers(self) -> dict[str, "PreTrainedTokenizerBase"]:
        """The first task's beside the model; where they differ, each in a folder of its task."""
        first, *others = self.tokenizers.values()
        if all(one is first for one in others):
            return {"": first}
        return {"": first} | {f"tokenizers/{task}": one for task, one in self.tokenizers.items()}

    @property
    def _ready(self) -> "PreTrainedModel":
        if self.model is None:
            raise RuntimeError("the model is read by configure_model or adopt: call one first")
        return self.model
