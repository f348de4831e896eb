"""One question over several domains: which field of mathematics does a sentence speak of?

The tasks of ``DocsTopics`` have only their language in common. Here all experts answer the same
question, each on the documentation of different packages, as is common in practice.
"""

import random
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from fmerge.data import Example, Split, TaskData
from fmerge.data.documentation import key, package_folder, sentences

FIELDS: dict[str, dict[str, list[str]]] = {
    "scipy": {
        "linear algebra": ["scipy/linalg", "scipy/sparse"],
        "statistics": ["scipy/stats"],
        "optimisation": ["scipy/optimize"],
        "analysis": ["scipy/integrate", "scipy/interpolate", "scipy/fft", "scipy/signal"],
    },
    "sympy": {
        "linear algebra": ["sympy/matrices", "sympy/tensor"],
        "statistics": ["sympy/stats"],
        "optimisation": ["sympy/solvers"],
        "analysis": ["sympy/integrals", "sympy/calculus", "sympy/series", "sympy/functions"],
    },
    "torch": {
        "linear algebra": ["linear_operator", "torch/_linalg_utils.py", "torch/_refs/linalg"],
        "statistics": ["torch/distributions", "gpytorch/likelihoods", "gpytorch/distributions"],
        "optimisation": ["torch/optim", "botorch/optim"],
        "analysis": ["torch/signal", "torch/fft", "torch/autograd", "torch/_functorch"],
    },
}
"""Domain to field to the folders and files of installed packages that speak of it."""

SIZES: dict[Split, int] = {"train": 90, "validation": 30, "test": 50}
"""Sentences of each class in each split; the scarcest class has 171 of at most 15 words."""


class FieldSentences(TaskData):
    """Documentation sentences of one domain, labelled with their field; balanced.

    Args:
        domain: scipy, sympy or torch.
        seed: Seed of the split.
    """

    def __init__(self, domain: str, seed: int = 0) -> None:
        self.domain = domain
        self.seed = seed

    @property
    def labels(self) -> list[str]:
        """The fields."""
        return list(FIELDS[self.domain])

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
        generator = random.Random(self.seed)
        splits: dict[Split, list[Example]] = {split: [] for split in SIZES}
        for label, pool in enumerate(self._pools()):
            drawn = iter(generator.sample(pool, sum(SIZES.values())))
            for split, size in SIZES.items():
                splits[split] += [{"text": next(drawn), "label": label} for _ in range(size)]
        return splits

    def _pools(self) -> list[list[str]]:
        """Sorted sentences of each field, without those that two fields share."""
        keyed: list[dict[str, str]] = []
        for paths in FIELDS[self.domain].values():
            found: dict[str, str] = {}
            for path in paths:
                package, _, part = path.partition("/")
                for sentence in sentences(package_folder(package), [part]):
                    found.setdefault(key(sentence), sentence)
            keyed.append(found)
        fields_of = Counter(one for found in keyed for one in found)
        return [[found[one] for one in sorted(found) if fields_of[one] == 1] for found in keyed]
