"""One task's examples, and how they become a batch."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fmerge.errors import UserError
from fmerge.store import image_digest, is_image, open_image
from fmerge.system.recorded import Recorded

Split = Literal["train", "validation", "test"]
Example = Mapping[str, Any]
Collate = Callable[..., dict[str, Any]]
"""A task module's ``collate(examples, task)``."""


class TaskData(Recorded, ABC):
    """The examples of one task.

    Attributes:
        metrics: Names of the task's metrics, whose mean is its score.
    """

    metrics: Sequence[str] = ("accuracy",)

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """Names of the classes by label number; empty where each example has its own choices."""

    @abstractmethod
    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text`` (string), ``label`` (number) and, where the task has them,
            ``text_pair`` (string) or ``choices`` (the example's own answers, strings); for
            ``TextGenerator`` ``text`` with ``answer`` (string), or alone, or ``messages``; of
            images ``image``: a ``StoredImage``, a path or an image of Pillow.
        """

    def has(self, split: Split) -> bool:
        """Tells whether the task has a split, where that is known without reading it.

        Args:
            split: Which one.

        Returns:
            True, unless a task knows better.
        """
        return True


def read_examples(task: TaskData, name: str, split: Split, check: bool = True) -> Sequence[Example]:
    """Reads a split of a task.

    Args:
        task: The task.
        name: Its name, for errors.
        split: Which split.
        check: Whether labels and texts are checked.

    Returns:
        The examples, one at least.

    Raises:
        UserError: If the split cannot be read or is empty, or an example is unfit.
    """
    try:
        found = task.examples(split)
    except UserError as error:
        raise UserError(f"task '{name}': {error}") from error
    if not found:
        raise UserError(f"task '{name}': its {split} split is empty")
    if check:
        check_examples(f"task '{name}', {split} split", task.labels, found)
    return found


def digest(examples: Sequence[Example]) -> str:
    """Hashes examples.

    Args:
        examples: The examples.

    Returns:
        The SHA-256 digest of their contents in order, in hexadecimal.
    """
    text = json.dumps([_hashed(one) for one in examples], sort_keys=True, default=_content)
    return hashlib.sha256(text.encode()).hexdigest()


def _hashed(example: Example) -> dict[str, Any]:
    if "image" not in example:
        return dict(example)
    # its content, wherever it is
    return {**example, "image": image_digest(example["image"])}


def _content(value: object) -> str:
    """Describes what JSON does not know; numbers of a tensor in full, which its text is not."""
    if isinstance(value, Tensor | np.ndarray):
        one = torch.as_tensor(value).detach().cpu().contiguous()
        numbers = one.flatten().view(torch.uint8).numpy().tobytes()
        return f"{one.dtype} {tuple(one.shape)} {hashlib.sha256(numbers).hexdigest()}"
    return str(value)


def check_images(where: str, examples: Sequence[Example]) -> None:
    """Opens every image of some examples.

    Args:
        where: Task and split, for errors.
        examples: The examples, with or without images.

    Raises:
        UserError: If one cannot be opened.
    """
    for row, example in enumerate(examples, 1):
        if "image" in example:
            try:
                open_image(example["image"])
            except UserError as error:
                raise UserError(f"{where}, example {row}: {error}") from error


def check_examples(where: str, labels: Sequence[str], examples: Sequence[Example]) -> None:
    """Checks labels and texts of examples, whichever class read them.

    Args:
        where: Task and split, for errors.
        labels: Names of the classes; none where each example has its own choices.
        examples: The examples.

    Raises:
        UserError: If a text is no text, or a label is missing, not finite or no class's number.
    """
    for row, example in enumerate(examples, 1):
        for key in ("text", "text_pair", "answer"):
            if key in example and not isinstance(example[key], str):
                raise UserError(
                    f"{where}, example {row}: its {key} is {example[key]!r}, but must be a string"
                )
        if "image" in example and not isinstance(image := example["image"], str | Path):
            if not is_image(image):
                raise UserError(
                    f"{where}, example {row}: its image is a {type(image).__name__}, but must be a "
                    "path, or an image of Pillow"
                )
        if "label" not in example:
            continue
        label, classes = example["label"], len(example.get("choices", labels))
        if label is None or (isinstance(label, float) and not isfinite(label)):
            raise UserError(f"{where}, example {row}: its label is {label}; leave the example out")
        if classes > 1 and isinstance(label, int) and not 0 <= label < classes:
            raise UserError(
                f"{where}, example {row}: its label is {label}, but must lie in 0 to {classes - 1}"
            )


class Examples(Dataset[Example]):
    """A sequence of examples as a ``Dataset`` of PyTorch."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def plain_batch(examples: Sequence[Example], task: str) -> dict[str, Any]:
    """Makes a batch for a module that has no ``collate`` of its own.

    Args:
        examples: n examples, whose values torch can stack or list.
        task: The task's name.

    Returns:
        The examples' fields, ``label`` renamed to ``labels`` (n,), and ``task``.
    """
    batch: dict[str, Any] = default_collate(list(examples))
    if "label" in batch:
        batch["labels"] = batch.pop("label")
    return {**batch, "task": task}


def length(example: Example) -> int:
    """Measures an example without a tokenizer.

    Args:
        example: An example.

    Returns:
        Characters of its texts.
    """
    texts = [str(example.get(key, "")) for key in ("text", "text_pair", "answer")]
    return sum(map(len, [*texts, *(str(one["content"]) for one in example.get("messages", ()))]))
