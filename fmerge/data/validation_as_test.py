"""Tasks whose test answers are not public: validation examples are used for the test."""

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from fmerge.data.examples import Example, Split, TaskData
from fmerge.errors import UserError

TestFrom = Literal["half", "validation"]
"""Where test examples come from: half of the validation split, or all of it again."""


class ValidationAsTest(TaskData):
    """A task with public training and validation examples only.

    Args:
        test: ``half``: the validation split is halved at random, and one half is the test split;
            ``validation``: the whole validation split is the test split too.
        train: Most training examples, chosen at random; all when None.
        validation: Most validation examples, likewise; test examples are not limited.
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
            # at random, as the rows of some tasks are sorted by their source
            random.Random(self.seed).shuffle(chosen)
            half = len(found) // 2
            chosen = chosen[:half] if split == "validation" else chosen[half:]
        # after halving, so that a limit on validation does not shrink the test
        limit = self.limits.get(split)
        if limit is not None and limit < len(chosen):
            chosen = random.Random(self.seed).sample(chosen, limit)
        # in the order of the data set: a limit of all examples changes nothing
        return [found[i] for i in sorted(chosen)]
