"""Question answering by a span of the text, on any ``AutoModelForQuestionAnswering``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.modules.heads import PositionModule
from fmerge.modules.independent import IndependentAnswers
from fmerge.modules.tokenized import model_inputs
from fmerge.store import LabelNames, load_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POSITIONS = 100_000
"""More than any text has; start · _POSITIONS + end encodes a span as one number."""


@final
class SpanAnswers(PositionModule, IndependentAnswers):
    """Extractive question answering: start and end of the answer, independent given the text.

    log p(start, end) = log p(start) + log p(end), each a softmax over the tokens that are not
    padding. Where an example has no answer, or it was truncated, the span is the first token,
    which is CLS.

    A text of t tokens has t² spans, but the exact Fisher needs only 2t backward passes, as start
    and end are two independent parts of the answer.
    """

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> "PreTrainedModel":
        """Reads a model that answers questions.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
            task: Which of a Lightning checkpoint's heads to take.
            labels: Names of classes, which spans do not have; ignored.
            fresh_head: Start a new head where the source has none; otherwise refuse.

        Returns:
            The network, in float32 on the CPU.
        """
        return load_classifier(source, task, None, fresh_head, "question answering")

    def _names(self, model: "PreTrainedModel") -> LabelNames:
        return LabelNames()

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Tokenizes questions with their texts, truncated together.

        Args:
            examples: Mappings with ``text``, ``text_pair`` and ``label``: the answer's first and
                last character in ``text_pair``, negative for none.
            task: The task's name.

        Returns:
            The tokenizer's tensors (n, t), ``labels`` (n, 2), first and last token, and ``task``.

        Raises:
            UserError: If an example is no question on a text.
        """
        if not all("text_pair" in one and isinstance(one["label"], tuple) for one in examples):
            raise UserError(f"task '{task}': SpanAnswers needs questions on texts, as of Squad2")
        texts = [[one["text"], one["text_pair"]] for one in examples]
        encoded = self.encode(texts, self._longest(task), task, "longest_first")
        labels = torch.tensor([_span(encoded, i, *one["label"]) for i, one in enumerate(examples)])
        return {**encoded, "labels": labels, "task": task}

    def part_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the log-probabilities of all starts, and of all ends.

        Args:
            batch: What ``collate`` made.

        Returns:
            log p (n, 2, t), at least float32, −∞ at padding.
        """
        model = self.models[batch["task"]]
        outputs = model(**model_inputs(model, batch))
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        padding = batch["attention_mask"][:, None] == 0
        return logits.masked_fill(padding, -torch.inf).log_softmax(dim=2)

    def choose(self, log_probs: Tensor, task: str) -> Tensor:
        """Chooses the likeliest start and end.

        Args:
            log_probs: What ``part_log_probs`` gave.
            task: The task's name; it makes no difference here.

        Returns:
            Both as one number (n,).
        """
        starts, ends = log_probs.argmax(dim=2).unbind(1)
        return starts * _POSITIONS + ends

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """Encodes each true span as one number, as ``outcome`` encodes predictions.

        Args:
            batch: What ``collate`` made.

        Returns:
            Start and end as one number (n,).
        """
        labels: Tensor = batch["labels"]
        return labels[:, 0] * _POSITIONS + labels[:, 1]


def _span(encoded: Any, i: int, first: int, last: int) -> tuple[int, int]:
    """Finds the first and last token of an answer; the first of all where there is none."""
    start, end = (encoded.char_to_token(i, one, 1) if one >= 0 else None for one in (first, last))
    if start is None or end is None:
        start = end = int(encoded["attention_mask"][i].argmax())
    return start, end
