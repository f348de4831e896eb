"""Tasks whose public test answers are hidden, so that validation examples must do."""

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from fmerge.data.examples import Example, Split, TaskData
from fmerge.errors import UserError

TestFrom = Literal["half", "validation"]
"""Where test examples come from: half of the validation split, or all of it once more."""


class HiddenTest(TaskData):
    """A task with public training and validation examples only.

    Args:
        test: ``half``: the validation split is halved at random, one half validates and the other
            tests; ``validation``: it does both.
        train: Training examples at most, chosen at random; all when None.
        validation: Validation examples at most, likewise; test examples are not limited.
        seed: Seed of these choices.
    """

    def __init__(
        self,
        test: TestFrom = "half",
        train: int | None = None,
        validation: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, limit in (("train", train), ("validation", validation)):
            if limit is not None and limit < 1:
                raise UserError(f"{type(self).__name__}: {name} is {limit}, but must be at least 1")
        if test not in {"half", "validation"}:
            raise UserError(
                f"{type(self).__name__}: test is '{test}', but the public test answers are hidden; "
                "give half or validation"
            )
        self.test = test
        self.limits = {"train": train, "validation": validation}
        self.seed = seed
        self._read: dict[str, list[Example]] = {}

    @abstractmethod
    def read(self, split: Literal["train", "validation"]) -> list[Example]:
        """Reads all public examples of a split.

        Args:
            split: Which one.

        Returns:
            Its examples, in their order.
        """

    @override
    def examples(self, split: Split) -> Sequence[Example]:
        if split not in self._read:
            self._read[split] = self._choose(split)
        return self._read[split]

    def _choose(self, split: Split) -> list[Example]:
        found = self.read("train" if split == "train" else "validation")
        chosen = list(range(len(found)))
        if split != "train" and self.test == "half":
            if len(found) < 2:
                raise UserError(
                    f"{type(self).__name__}: {len(found)} validation example cannot be halved; "
                    "set test to validation"
                )
            # at random: the rows of some tasks are sorted by where they come from
            random.Random(self.seed).shuffle(chosen)
            half = len(found) // 2
            chosen = chosen[:half] if split == "validation" else chosen[half:]
        limit = self.limits.get(split)
        if limit is not None and limit < len(chosen):
            chosen = random.Random(self.seed).sample(chosen, limit)
        return [found[i] for i in sorted(chosen)]
