"""Tasks of which the answers are made: a sentence's library, word order, and whether it is whole.

Their experts need other skills than the topics, on the same kind of sentences.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain

from fmerge.data import Example, Split, TaskData

KINDS: Mapping[str, list[str]] = {
    "library": ["sklearn", "sympy", "torch"],
    "order": ["in order", "shuffled"],
    "whole": ["whole", "cut"],
}
"""The tasks and their classes."""

SIZES: Mapping[Split, int] = {"train": 150, "validation": 60, "test": 120}
"""Sentences of each class in each split."""


class Derived(TaskData):
    """Documentation sentences with an answer that follows from how they were made; balanced.

    Args:
        kind: One of ``KINDS``.
        pools: A function from a library to its sentences by topic.
        seed: Seed of the split.
    """

    def __init__(
        self, kind: str, pools: Callable[[str], Mapping[str, Sequence[str]]], seed: int
    ) -> None:
        self.kind, self.pools, self.seed = kind, pools, seed

    @property
    def labels(self) -> list[str]:
        """The classes."""
        return KINDS[self.kind]

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: The split.

        Returns:
            Mappings with ``text`` and ``label``, as many of each class.
        """
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[Split, list[Example]]:
        generator = random.Random(f"{self.kind} {self.seed}")
        splits: dict[Split, list[Example]] = {split: [] for split in SIZES}
        pools = {one: list(chain(*self.pools(one).values())) for one in KINDS["library"]}
        everything = list(chain(*pools.values()))
        taken: set[str] = set()
        for label, name in enumerate(self.labels):
            pool = pools[name] if self.kind == "library" else everything
            left = [sentence for sentence in pool if sentence not in taken]
            drawn = iter(generator.sample(left, sum(SIZES.values())))
            for split, size in SIZES.items():
                sentences = [next(drawn) for _ in range(size)]
                taken.update(sentences)
                splits[split] += [
                    {"text": _changed(name, one, generator), "label": label} for one in sentences
                ]
        return splits


def _changed(name: str, sentence: str, generator: random.Random) -> str:
    words = sentence.split()
    if name == "shuffled":
        words = generator.sample(words, len(words))
    if name == "cut":  # a third to two thirds stay
        words = words[: max(2, round(len(words) * generator.uniform(1 / 3, 2 / 3)))]
    if name in {"whole", "cut"}:  # a full stop alone would tell them apart
        words = [*words[:-1], words[-1].rstrip(".!?:;,")]
    return " ".join(words)
