"""Text-to-text tasks: a language model ranks the choices by their likelihood."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.modules.answers import (
    answer_log_likelihoods,
    bare,
    continuation_tokens,
    mean_log_likelihoods,
    padded,
    padded_choices,
    target_tokens,
)
from fmerge.modules.choices import check_example, named, padding_id
from fmerge.modules.optimization import Scheduler, adamw, check_numbers
from fmerge.modules.tokenized import TokenizedModule
from fmerge.modules.truncation import max_input_length, position_count
from fmerge.params import Params, params_of
from fmerge.store import SavedForm, load_language_model, load_tokenizer, save_models

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RankChoice(TokenizedModule):
    """Rank classification: one text-to-text or causal language model for all tasks, no heads.

    An example is a prompt, ``text``, with any number of ``choices``, and ``label``, the index of
    the true one. It is trained on the true answers' tokens alone.

    Args:
        path: Where the weights are: Hugging Face folder, hub id, or ``package:name/folder``
            inside an installed package. ``fisher`` and ``merge`` take them from the experts.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
        max_length: Tokens to which a prompt is truncated, if the model takes as many; answers
            are never truncated.
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

    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ[n,c] = 1/T Σₛ log p(yₛ | y₍<ₛ₎, x), the mean over the T tokens of choice c.

        The end of the sequence is one of the tokens. An encoder runs once for each example.

        Args:
            batch: What ``collate`` made.

        Returns:
            ℓ (n, c), at least float32, −∞ where an example has fewer choices.
        """
        return mean_log_likelihoods(*self._sums(batch, batch["choice_ids"]))

    def task_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the cross-entropy of the true answers' tokens.

        Args:
            batch: One task's batch.

        Returns:
            The mean over all those tokens of the batch, a scalar.
        """
        true = torch.take_along_dim(batch["choice_ids"], batch["labels"][:, None, None], 1)
        sums, lengths = self._sums(batch, true)
        return -sums.sum() / lengths.sum()

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Tokenizes n prompts and their choices, and pads them on the right.

        Args:
            examples: Mappings with ``text``, ``choices`` (at least two strings) and ``label``.
            task: The task's name.

        Returns:
            ``input_ids`` and ``attention_mask`` (n, t), ``choice_ids`` (n, c, s) with −100 where
            there is no token, ``labels`` (n,) and ``task``.

        Raises:
            UserError: If an example has fewer than two choices, a label out of range, or a
                prompt or choice without tokens.
        """
        model, tokenizer = self._ready, self.tokenizer_of(task)
        for example in examples:
            check_example(example, task)
        texts = [example["text"] for example in examples]
        choices = [list(example["choices"]) for example in examples]
        limits = [max_input_length(self.max_length, tokenizer, [model])] * len(texts)
        if model.config.is_encoder_decoder:
            answers = target_tokens(tokenizer, choices)
        else:
            texts = [bare(text) for text in texts]
            answers = continuation_tokens(tokenizer, texts, choices)
            limits = self._prompt_limits(answers, limits[0])
        prompts = self._prompt_tokens(texts, limits, task)
        for ids, own, example in zip(prompts, answers, examples, strict=True):
            if not ids or not all(own):
                raise UserError(f"{named(example, task)} has a prompt or choice without any token")
        width = max(map(len, prompts))
        return {
            "input_ids": padded(prompts, width, padding_id(model, tokenizer)),
            "attention_mask": padded([[1] * len(ids) for ids in prompts], width, 0),
            "choice_ids": padded_choices(answers),
            "labels": torch.tensor([example["label"] for example in examples]),
            "task": task,
        }

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

    def _score(self, batch: Mapping[str, Any]) -> Tensor:
        sums, lengths = self._sums(batch, batch["choice_ids"])
        predictions = self.predictions(mean_log_likelihoods(sums, lengths))
        self._update_metrics(batch, predictions)
        true = batch["labels"][:, None]
        sums, lengths = sums.gather(1, true), lengths.gather(1, true)
        self.val_loss.update(-sums / lengths, weight=lengths)  # a mean over tokens, as in training
        return predictions

    def _prompt_limits(self, answers: Sequence[Sequence[Sequence[int]]], limit: int) -> list[int]:
        """Tokens that each prompt may have, so that its longest answer fits after it."""
        positions = position_count(self._ready) or float("inf")
        longest = [max(map(len, own)) for own in answers]
        if positions <= max(longest):
            raise UserError(
                f"--model: takes {positions} tokens, but an answer alone has {max(longest)}"
            )
        return [int(min(limit, positions - length)) for length in longest]

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
        # some tokenizers end every text, but here the answer follows
        ends = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
        return [ids[:-1] for ids in prompts] if ends else prompts
