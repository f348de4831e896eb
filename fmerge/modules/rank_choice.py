"""Text-to-text tasks: a language model ranks the choices by their likelihood."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.modules.answers import (
    bare,
    continuation_tokens,
    mean_log_likelihoods,
    target_tokens,
)
from fmerge.modules.choices import check_example, named
from fmerge.modules.language_model import LanguageModule
from fmerge.modules.truncation import max_input_length, position_count


@final
class RankChoice(LanguageModule):
    """Rank classification: one text-to-text or causal language model for all tasks, no heads.

    An example is a prompt, ``text``, with any number of ``choices``, and ``label``, the index of
    the true one. It is trained on the true answers' tokens alone, which are never truncated.
    """

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
        labels = [example["label"] for example in examples]
        return self._batch(prompts, answers, labels, task)

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
