"""Classification and regression by a Hugging Face head; of texts, on any model of sequences."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.fisher import Estimator
from fmerge.modules.heads import HeadedModule, SharedBody
from fmerge.modules.tokenized import model_inputs
from fmerge.store import load_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Classifier(SharedBody, ABC):
    """Classification of whole inputs: one shared body, one head per task, from Hugging Face.

    A task of one label is a regression: its answer is a number y, and the model's output μ is the
    mean of a normal distribution of variance one.
    """

    def label_log_probs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes ℓ = log_softmax(logits), or −(y − μ)²/2 for a regression.

        y is the label. Where the batch has ``answers`` r (n, c), y = μ + r with μ held constant,
        so that ∂ℓ/∂θ = r ∂μ/∂θ.

        Args:
            batch: What ``collate`` made.

        Returns:
            ℓ (n, c), at least float32.
        """
        outputs = self._outputs(batch)
        if not self._is_regression(batch["task"]):
            return outputs.log_softmax(dim=1)
        distances = batch["labels"].to(outputs)[:, None] - outputs
        if "answers" in batch:
            # the bracket is zero, and its gradient is that of -μ
            distances = batch["answers"].to(outputs) + (outputs.detach() - outputs)
        log_likelihoods: Tensor = -distances.square() / 2
        return log_likelihoods

    def _outputs(self, batch: Mapping[str, Any]) -> Tensor:
        model = self.models[batch["task"]]
        logits: Tensor = model(**model_inputs(model, batch)).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def lists_answers(self, task: str, estimator: Estimator) -> bool:
        """Tells whether the task has classes.

        Args:
            task: The task's name.
            estimator: How a Fisher is estimated; it makes no difference here.

        Returns:
            False for a regression, whose answers are numbers.
        """
        return not self._is_regression(task)

    def _is_regression(self, task: str) -> bool:
        return len((self.tasks or {}).get(task, ())) == 1

    def draw_answers(
        self, batch: Mapping[str, Any], estimator: Estimator, uniforms: Tensor
    ) -> Tensor:
        """Chooses the distances r of a regression's answers from its output μ.

        exact and rademacher: r = 1, as the mean of (r ∂μ/∂θ)² over r ~ N(0, 1) is (∂μ/∂θ)²;
        sampled: draws of r; empirical: the distance of the label.

        Args:
            batch: What ``collate`` made.
            estimator: How they are chosen.
            uniforms: Random numbers in [0, 1) (n, samples, 2).

        Returns:
            r (n, c).
        """
        distances = torch.ones(len(uniforms), 1)
        if estimator == "empirical":
            outputs = self._outputs(batch)
            distances = batch["labels"].to(outputs)[:, None] - outputs
        if estimator == "sampled":
            # the normal quantile of 0 is -infinity
            numbers = uniforms[..., 0].clamp_min(torch.finfo(uniforms.dtype).eps)
            distances = torch.special.ndtri(numbers).float()
        return distances.to(self.device)

    def outcome(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Computes losses and predictions; those of a regression are (y − μ)²/2 and μ.

        Args:
            batch: What ``collate`` made.

        Returns:
            Losses (n,) and predictions (n,).
        """
        if not self._is_regression(batch["task"]):
            return super().outcome(batch)
        means = self._outputs(batch)[:, 0]
        return (batch["labels"].to(means) - means).square() / 2, means


@final
class TextClassifier(Classifier, HeadedModule):
    """Sequence classification: one shared body, one head per task, from Hugging Face.

    A task of one label is a regression: its answer is a number y, and the model's output μ is the
    mean of a normal distribution of variance one.
    """

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> "PreTrainedModel":
        """Reads a sequence classifier.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
            task: Which of a Lightning checkpoint's heads to take.
            labels: The task's class names in order; those of the source when None.
            fresh_head: Start a new head where the source has none; otherwise refuse.

        Returns:
            The classifier, in float32 on the CPU.
        """
        return load_classifier(source, task, labels, fresh_head)

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Tokenizes n examples and pads them to the longest.

        Args:
            examples: Mappings with ``text``, optionally ``text_pair``, and ``label``.
            task: The task's name.

        Returns:
            The tokenizer's tensors (n, t), ``labels`` (n,) and ``task``.

        """
        _check_kind(examples, task)
        keys = ["text", "text_pair"] if "text_pair" in examples[0] else ["text"]
        texts = [[one[key] for key in keys] for one in examples]
        encoded = self.encode(texts, self._longest(task), task)
        labels = torch.tensor([one["label"] for one in examples])
        return {**encoded, "labels": labels, "task": task}


def _check_kind(examples: Sequence[Mapping[str, Any]], task: str) -> None:
    """Refuses the examples of another kind of module, and names it."""
    if "choices" in examples[0]:
        raise UserError(
            f"task '{task}': its examples have choices, which a language model ranks; give "
            "--model RankChoice"
        )
    if isinstance(examples[0]["label"], tuple):
        raise UserError(
            f"task '{task}': its answers are parts of texts, not classes; give --model SpanAnswers"
        )
