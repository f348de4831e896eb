"""Classification and regression by a Hugging Face head; of texts, on any model of sequences."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.modules.heads import HeadedModule, SharedBody
from fmerge.modules.label_answers import LabelAnswers
from fmerge.modules.tokenized import model_inputs
from fmerge.store import Head, load_classifier


class Classifier(SharedBody, LabelAnswers, ABC):
    """Classification of whole inputs: one shared body, one head per task, from Hugging Face.

    A task has classes, several independent labels, or a number for an answer.

    Attributes:
        head: The kind of head that its checkpoints have.
    """

    head: ClassVar[Head] = "classification"

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> Any:
        """Reads a classifier.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.
            task: Which of a Lightning checkpoint's heads to take.
            labels: The task's class names in order; those of the source when None.
            fresh_head: Start a new head where the source has none; otherwise refuse.

        Returns:
            The classifier, in float32 on the CPU.
        """
        return load_classifier(source, task, labels, fresh_head, self.head)

    def outputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Computes the outputs of a task's classifier.

        Args:
            batch: What ``collate`` made.

        Returns:
            Logits, or means of a regression (n, o), at least float32.
        """
        model = self.models[batch["task"]]
        logits: Tensor = model(**model_inputs(model, batch)).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


@final
class TextClassifier(Classifier, HeadedModule):
    """Sequence classification: one shared body, one head per task, from Hugging Face.

    A task has classes, several independent labels, or a number for an answer.
    """

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Tokenizes n examples and pads them to the longest.

        Args:
            examples: Mappings with ``text``, optionally ``text_pair``, and ``label``: a number,
                or a list of 0 or 1 for each of several labels.
            task: The task's name.

        Returns:
            The tokenizer's tensors (n, t), ``labels`` (n,) or (n, o), and ``task``.
        """
        _check_kind(examples, task)
        keys = ["text", "text_pair"] if "text_pair" in examples[0] else ["text"]
        texts = [[one[key] for key in keys] for one in examples]
        encoded = self.encode(texts, self._longest(task), task)
        labels = torch.tensor([one["label"] for one in examples])
        return {**encoded, "labels": labels, "task": task}


def _check_kind(examples: Sequence[Mapping[str, Any]], task: str) -> None:
    """Refuses the examples of another kind of module, and names it."""
    if "words" in examples[0]:
        raise UserError(
            f"task '{task}': its answers are tags of words, not of texts; give --model "
            "TokenClassifier"
        )
    if "image" in examples[0]:
        raise UserError(f"task '{task}': its examples are images; give --model ImageClassifier")
    if "choices" in examples[0]:
        raise UserError(
            f"task '{task}': its examples have choices, which a language model ranks; give "
            "--model RankChoice"
        )
    if isinstance(examples[0]["label"], tuple):
        raise UserError(
            f"task '{task}': its answers are parts of texts, not classes; give --model SpanAnswers"
        )
