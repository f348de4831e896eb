"""Question answering by a span of the text, on any ``AutoModelForQuestionAnswering``."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.fisher import Estimator
from fmerge.modules.heads import HeadedModule
from fmerge.modules.tokenized import model_inputs
from fmerge.store import load_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_POSITIONS = 100_000
"""More than any text has; start · _POSITIONS + end encodes a span as one number."""


@final
class SpanAnswers(HeadedModule):
    """Extractive question answering: start and end of the answer, independent given the text.

    log p(start, end) = log p(start) + log p(end), each a softmax over the tokens that are not
    padding. Where an example has no answer, or it was truncated, the span is the first token,
    which is CLS.

    A text of t tokens has t² spans, but the exact Fisher needs only 2t backward passes: start and
    end are independent and E ∂log p(start)/∂θ = 0, so that the mean of
    (∂ log p(start) + ∂ log p(end))² over all spans is the sum of the two mean squares. The
    ``sampled`` Fisher takes one pass for each draw.
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

    def adopt(
        self,
        models: Mapping[str, "PreTrainedModel"],
        tokenizer: "PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase]",
    ) -> None:
        """Adopts networks of one architecture: the body of the first one, the heads of all.

        Args:
            models: Task name to network.
            tokenizer: The tokenizer they share, or task name to the tokenizer of each.

        Raises:
            UserError: If a tokenizer gives no positions of its tokens in the text.
        """
        super().adopt(models, tokenizer)
        if not all(one.is_fast for one in self.tokenizers.values()):
            raise UserError("SpanAnswers: needs a fast tokenizer, which knows where tokens stand")
        self.tasks = {task: [] for task in models}
        self.hparams["tasks"] = self.tasks
        self.add_metrics(self.tasks, {})

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

    def lists_answers(self, task: str, estimator: Estimator) -> bool:
        """Tells whether starts and ends are weighted separately, or whole spans are drawn.

        Args:
            task: The task's name; it makes no difference here.
            estimator: How a Fisher is to be estimated.

        Returns:
            True for ``exact`` and ``rademacher``.
        """
        return estimator in {"exact", "rademacher"}

    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ = log p(start) + log p(end) of spans, or the log p of every start and end.

        Args:
            batch: What ``collate`` made, with ``answers`` (n, c, 2) where spans were drawn.

        Returns:
            ℓ (n, c), at least float32; without answers, that of all starts, then all ends
            (n, 2t). Gradients of the latter are multiplied by √2: weights that sum to one give
            each side one half, and the Fisher is the sum of both.
        """
        starts, ends = self._log_probs(batch)
        if "answers" in batch:
            spans: Tensor = batch["answers"]
            return starts.gather(1, spans[..., 0]) + ends.gather(1, spans[..., 1])
        both = torch.cat([starts, ends], dim=1)
        # the same values, with a larger gradient
        doubled = both.detach() + math.sqrt(2) * (both - both.detach())
        # -inf - (-inf) is NaN: padding gets its -inf again
        return doubled.masked_fill(both.detach() == -torch.inf, -torch.inf)

    def draw_answers(
        self, batch: Mapping[str, Any], estimator: Estimator, uniforms: Tensor
    ) -> Tensor:
        """Draws spans from the model, or takes the true ones.

        Args:
            batch: What ``collate`` made.
            estimator: ``sampled`` or ``empirical``.
            uniforms: Random numbers in [0, 1) (n, samples, 2): one for the start, one for the end.

        Returns:
            First and last tokens (n, c, 2).
        """
        if estimator == "empirical":
            labels: Tensor = batch["labels"]
            return labels[:, None]
        sides = []
        for side, log_probs in enumerate(self._log_probs(batch)):
            cumulative = log_probs.double().cpu().exp().cumsum(dim=1)
            # the sums end at one but for rounding: scaled, no draw lies behind the last token
            scaled = uniforms[..., side].contiguous() * cumulative[:, -1:]
            drawn = torch.searchsorted(cumulative, scaled, right=True)
            sides.append(drawn.clamp_max(cumulative.shape[1] - 1))
        return torch.stack(sides, dim=-1).to(self.device)

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes losses and predictions.

        Args:
            batch: What ``collate`` made.

        Returns:
            Losses −ℓ of the true spans (n,), and the likeliest start and end as one number (n,).
        """
        starts, ends = self._log_probs(batch)
        labels: Tensor = batch["labels"]
        true = starts.gather(1, labels[:, :1]) + ends.gather(1, labels[:, 1:])
        return -true[:, 0], starts.argmax(1) * _POSITIONS + ends.argmax(1)

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """Encodes each true span as one number, as ``outcome`` encodes predictions.

        Args:
            batch: What ``collate`` made.

        Returns:
            Start and end as one number (n,).
        """
        labels: Tensor = batch["labels"]
        return labels[:, 0] * _POSITIONS + labels[:, 1]

    def _log_probs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        model = self.models[batch["task"]]
        outputs = model(**model_inputs(model, batch))
        padding = batch["attention_mask"] == 0
        starts, ends = (
            logits
            .to(torch.promote_types(logits.dtype, torch.float32))
            .masked_fill(padding, -torch.inf)
            .log_softmax(dim=1)
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        return starts, ends


def _span(encoded: Any, i: int, first: int, last: int) -> tuple[int, int]:
    """Finds the first and last token of an answer; the first of all where there is none."""
    start, end = (encoded.char_to_token(i, one, 1) if one >= 0 else None for one in (first, last))
    if start is None or end is None:
        start = end = int(encoded["attention_mask"][i].argmax())
    return start, end
