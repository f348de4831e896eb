"""The base of modules that run one language model for all tasks, without heads."""

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.modules.answers import (
    answer_log_likelihoods,
    ends_texts,
    padded,
    padded_choices,
)
from fmerge.modules.choices import padding_id
from fmerge.modules.optimization import Scheduler, adamw, check_numbers
from fmerge.modules.tokenized import TokenizedModule
from fmerge.params import Params, params_of
from fmerge.store import SavedForm, load_language_model, load_tokenizer, save_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LanguageModule(TokenizedModule, ABC):
    """One text-to-text or causal language model for all tasks, trained on answers to prompts.

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
        check_numbers(learning_rate, weight_decay, warmup_fraction, max_length)
        self.save_hyperparameters()
        self.path = path
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.scheduler = scheduler
        self.warmup_fraction = warmup_fraction
        self.max_length = max_length
        self.model: PreTrainedModel | None = None

    def configure_model(self) -> None:
        """Reads the weights from ``path``, once.

        Raises:
            UserError: If there is no path.
        """
        if self.model is not None:
            return
        if not self.path:
            raise UserError(
                "--model.path: is not set; give a Hugging Face folder, a hub id or "
                "package:name/folder"
            )
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        model = self.read(self.path, "")
        self.adopt(dict.fromkeys(data.tasks, model), load_tokenizer(self.path))
        self.add_metrics(data.labels, data.metrics)

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> "PreTrainedModel":
        """Reads a checkpoint in float32 on the CPU.

        Args:
            source: A Hugging Face folder, a hub id, ``package:name/folder``, or a Lightning
                ``.ckpt`` of a fit.
            task: The task's name; a language model is the same for every task.
            labels: Names of classes, which a language model does not have; ignored.
            fresh_head: Whether to start a new head; ignored, as there are no heads.

        Returns:
            A text-to-text or causal language model.
        """
        return load_language_model(source)

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
        self.add_metrics(dict.fromkeys(models, ()), {})  # choices differ by example

    def needs_padding(self, model: Any) -> bool:
        """Tells whether a network cannot do without a padding token.

        Args:
            model: The network.

        Returns:
            True for an encoder-decoder; to a decoder alone, padding is masked.
        """
        return bool(model.config.is_encoder_decoder)

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
            A Hugging Face language model.
        """
        return self._ready

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

    def _sums(self, batch: Mapping[str, Any], answers: Tensor) -> tuple[Tensor, Tensor]:
        """L (n, c) and T (n, c) of answers (n, c, s)."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return answer_log_likelihoods(self._ready, ids, mask, answers)

    def _prompt_tokens(
        self, texts: Sequence[str], limits: Sequence[int], task: str
    ) -> list[list[int]]:
        tokenizer = self.tokenizer_of(task)
        prompts: list[list[int]] = [
            tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            for text, limit in zip(texts, limits, strict=True)
        ]
        lengths = [len(ids) for ids in prompts]
        self.truncation.count(tokenizer, [[text] for text in texts], lengths, limits, task)
        if self._ready.config.is_encoder_decoder:
            return prompts
        ends = ends_texts(tokenizer)
        return [ids[:-1] for ids in prompts] if ends else prompts

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[Sequence[int]]],
        labels: Sequence[int],
        task: str,
    ) -> dict[str, Any]:
        """Pads the tokens of n prompts and of their answers on the right."""
        width = max(map(len, prompts))
        fill = padding_id(self._ready, self.tokenizer_of(task))
        return {
            "input_ids": padded(prompts, width, fill),
            "attention_mask": padded([[1] * len(ids) for ids in prompts], width, 0),
            "choice_ids": padded_choices(answers),
            "labels": torch.tensor(labels),
            "task": task,
        }
