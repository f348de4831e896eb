"""The base of modules that run one language model for all tasks, without heads."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmerge.modules.answers import (
    answer_log_likelihoods,
    ends_texts,
    padded,
    padded_choices,
)
from fmerge.modules.choices import padding_id
from fmerge.modules.one_model import OneModel
from fmerge.store import load_language_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageModule(OneModel, ABC):
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

    def needs_padding(self, model: Any) -> bool:
        """Tells whether a network cannot do without a padding token.

        Args:
            model: The network.

        Returns:
            True for an encoder-decoder; to a decoder alone, padding is masked.
        """
        return bool(model.config.is_encoder_decoder)

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
