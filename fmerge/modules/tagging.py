"""Tags of words, such as named entities or parts of speech, on ``AutoModelForTokenClassification``.

Letters: n example, t token, c tag, w the longest input of a task.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from fmerge.errors import UserError
from fmerge.modules.answers import ABSENT
from fmerge.modules.heads import PositionModule
from fmerge.modules.independent import IndependentAnswers
from fmerge.modules.tokenized import model_inputs
from fmerge.store import LabelNames, labels_of_config, load_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@final
class TokenClassifier(PositionModule, IndependentAnswers):
    """Token classification: one shared body, one head per task, from Hugging Face.

    The words of an example are joined by spaces, as a pipeline of transformers gets them. A word
    has its tag on its first token; its other tokens, and special ones, have none. Words that are
    truncated, or give no token, count neither in the loss nor in the metrics.

    Tags are independent given the words, so that the exact Fisher of an example of T words and C
    tags takes TC backward passes; ``sampled`` and ``rademacher`` take as many as ``samples``.
    """

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> "PreTrainedModel":
        """Reads a token classifier.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
            task: Which of a Lightning checkpoint's heads to take.
            labels: The task's tags in order; those of the source when None.
            fresh_head: Start a new head where the source has none; otherwise refuse.

        Returns:
            The network, in float32 on the CPU.
        """
        tags = None if labels is None else LabelNames(labels, "tags")
        return load_classifier(source, task, tags, fresh_head, "token classification")

    def _names(self, model: "PreTrainedModel") -> LabelNames:
        return LabelNames(labels_of_config(model.config), "tags")

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Tokenizes the words of n examples and pads them to the longest.

        Args:
            examples: Mappings with ``words`` and ``label``: a tag's number for each word.
            task: The task's name.

        Returns:
            The tokenizer's tensors (n, t), ``labels`` (n, t): the tag of each word on its first
            token, ``ABSENT`` elsewhere; and ``task``.

        Raises:
            UserError: If an example has no words, or none of them gives a token.
        """
        if not all("words" in one for one in examples):
            raise UserError(f"task '{task}': TokenClassifier needs words with tags, as of TagFiles")
        texts = [[" ".join(one["words"])] for one in examples]
        encoded = self.encode(texts, self._longest(task), task)
        labels = torch.full_like(encoded["input_ids"], ABSENT)
        for i, one in enumerate(examples):
            for word, start, tag in zip(
                one["words"], _starts(one["words"]), one["label"], strict=True
            ):
                token = _first_token(encoded, i, start, len(word))
                if token is not None and labels[i, token] == ABSENT:
                    labels[i, token] = tag
        if (empty := (labels == ABSENT).all(dim=1)).any():
            words = examples[int(empty.int().argmax())]["words"]
            raise UserError(
                f"task '{task}': none of the words {' '.join(words)[:40]!r} gives a token; remove "
                "the example"
            )
        return {**encoded, "labels": labels, "task": task}

    def part_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the log-probabilities of all tags of each token that has one.

        Args:
            batch: What ``collate`` made.

        Returns:
            log p (n, t, c), at least float32, −∞ at tokens without a tag.
        """
        model = self.models[batch["task"]]
        logits: Tensor = model(**model_inputs(model, batch)).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        untagged = batch["labels"] == ABSENT
        return logits.log_softmax(dim=2).masked_fill(untagged[..., None], -torch.inf)

    def choose(self, log_probs: Tensor, task: str) -> Tensor:
        """Chooses the likeliest tags.

        Args:
            log_probs: What ``part_log_probs`` gave.
            task: The task's name.

        Returns:
            Tags (n, w), ``ABSENT`` where there is none.
        """
        untagged = (log_probs == -torch.inf).all(dim=2)
        return self._widened(log_probs.argmax(dim=2).masked_fill(untagged, ABSENT), task)

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """Picks the true tags.

        Args:
            batch: What ``collate`` made.

        Returns:
            Tags (n, w), ``ABSENT`` where there is none.
        """
        return self._widened(batch["labels"], batch["task"])

    def _widened(self, tags: Tensor, task: str) -> Tensor:
        """Makes the rows of all batches equally long, so that they can be joined."""
        return F.pad(tags, (0, self._longest(task) - tags.shape[1]), value=ABSENT)

    def numbers_per_draw(self, task: str) -> int:
        """Tells how many random numbers the tags of an example need, at most.

        Args:
            task: The task's name.

        Returns:
            w.
        """
        return max(2, self._longest(task))

    def task_loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the mean cross-entropy of all tags of a batch.

        Args:
            batch: One task's batch.

        Returns:
            The loss, a scalar.
        """
        tags: Tensor = (batch["labels"] != ABSENT).sum()
        return self.outcome(batch)[0].sum() / tags

    def _score(self, batch: Mapping[str, Any]) -> Tensor:
        losses, predictions = self.outcome(batch)
        self._update_metrics(batch, predictions)
        tags = (batch["labels"] != ABSENT).sum(dim=1)
        self.val_loss.update(losses / tags, weight=tags)  # a mean over tags, as in training
        return predictions


def _starts(words: Sequence[str]) -> list[int]:
    """The place of each word's first character, where the words are joined by spaces."""
    return list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))


def _first_token(encoded: Any, i: int, start: int, length: int) -> int | None:
    """Finds the first token of a word; a tokenizer may drop characters, such as accents."""
    found = (encoded.char_to_token(i, place) for place in range(start, start + length))
    return next((token for token in found if token is not None), None)
