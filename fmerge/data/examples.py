"""One task's examples, and how they become a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch.utils.data import Dataset, default_collate

Split = Literal["train", "validation", "test"]
Example = Mapping[str, Any]
Collate = Callable[..., dict[str, Any]]
"""A task module's ``collate(examples, task)``."""


class TaskData(ABC):
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
            ``text_pair`` (string) or ``choices`` (the example's own answers, strings).
        """

    def has(self, split: Split) -> bool:
        """Tells whether the task has a split, where that is known without reading it.

        Args:
            split: Which one.

        Returns:
            True, unless a task knows better.
        """
        return True


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
    return len(str(example.get("text", ""))) + len(str(example.get("text_pair", "")))
