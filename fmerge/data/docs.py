"""Which part of a library does a sentence of its documentation describe?"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

from fmerge.data.documentation import key, package_folder, sentences
from fmerge.data.examples import Example, Split, TaskData
from fmerge.errors import UserError, known

TOPICS: dict[str, dict[str, list[str]]] = {
    "sklearn": {
        "linear models": ["linear_model", "svm"],
        "trees and ensembles": ["ensemble", "tree"],
        "metrics": ["metrics"],
        "model selection": ["model_selection", "calibration.py", "inspection"],
    },
    "sympy": {
        "expressions": ["core", "functions"],
        "calculus": ["simplify", "integrals", "concrete", "calculus", "series"],
        "solvers": ["solvers"],
        "printing and parsing": ["utilities", "printing", "codegen", "parsing"],
    },
    "torch": {
        "tracing": ["_dynamo"],
        "export": ["_functorch", "export", "_export", "_higher_order_ops"],
        "graphs": ["fx"],
        "code generation": ["_inductor/codegen", "_inductor/fx_passes", "_inductor/runtime"],
    },
}
"""Library to topic to the files and folders that it is documented in."""


class DocsTopics(TaskData):
    """Sentences of a library's own documentation, labelled with the part they describe.

    Nothing is downloaded: the sentences are those of the installed package's docstrings. The
    classes are balanced. No sentence is in two classes or two splits, even if its names and
    numbers differ.

    Args:
        library: One of the libraries whose topics are known: sklearn, sympy or torch.
        train: Training sentences of each class.
        validation: Validation sentences of each class.
        test: Test sentences of each class.
        seed: Seed of the split.
    """

    def __init__(
        self,
        library: str,
        train: int = 400,
        validation: int = 40,
        test: int = 120,
        seed: int = 0,
    ) -> None:
        if library not in TOPICS:
            raise UserError(f"DocsTopics: unknown library '{library}'; known: {known(TOPICS)}")
        self.library = library
        self.sizes: Mapping[Split, int] = {"train": train, "validation": validation, "test": test}
        self.seed = seed

    @property
    def labels(self) -> list[str]:
        """The parts of the library."""
        return list(TOPICS[self.library])

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text`` and ``label``, equally many of each class.
        """
        return self._splits[split]

    @cached_property
    def _splits(self) -> Mapping[Split, list[Example]]:
        generator = random.Random(self.seed)
        needed = sum(self.sizes.values())
        splits: dict[Split, list[Example]] = {split: [] for split in self.sizes}
        for label, (topic, pool) in enumerate(self._pools().items()):
            if len(pool) < needed:
                raise UserError(
                    f"DocsTopics: {self.library} has {len(pool)} sentences on {topic}, but "
                    f"{needed} are asked for; lower train, validation or test"
                )
            drawn = iter(generator.sample(pool, needed))
            for split, size in self.sizes.items():
                splits[split] += [{"text": next(drawn), "label": label} for _ in range(size)]
        return splits

    def _pools(self) -> Mapping[str, Sequence[str]]:
        return _sentences_of(self.library)


class DocsText(TaskData):
    """Sentences of a library's own documentation, as plain texts for a language model.

    Nothing is downloaded: the sentences are those of ``DocsTopics``, of all topics together.

    Args:
        library: One of the libraries whose topics are known: sklearn, sympy or torch.
        train: Training sentences.
        validation: Validation sentences.
        test: Test sentences.
        seed: Seed of the split.
    """

    metrics = ("inverse_perplexity",)

    def __init__(
        self,
        library: str,
        train: int = 1600,
        validation: int = 160,
        test: int = 480,
        seed: int = 0,
    ) -> None:
        topics = len(TOPICS[library]) if library in TOPICS else 1  # which DocsTopics refuses
        for name, size in (("train", train), ("validation", validation), ("test", test)):
            if size % topics:
                raise UserError(f"DocsText: {name} is {size}, but must be a multiple of {topics}")
        sizes = (train // topics, validation // topics, test // topics)
        self._topics = DocsTopics(library, *sizes, seed=seed)

    @property
    def labels(self) -> list[str]:
        """Empty: there is nothing to tell apart."""
        return []

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text`` alone.
        """
        return [{"text": one["text"]} for one in self._topics.examples(split)]


@lru_cache
def _sentences_of(library: str) -> Mapping[str, Sequence[str]]:
    """Sorted sentences of each topic, without those that topics share; read once."""
    folder = package_folder(library)
    keyed: dict[str, dict[str, str]] = {}
    for topic, paths in TOPICS[library].items():
        keyed[topic] = {}
        for sentence in sentences(folder, paths):
            keyed[topic].setdefault(key(sentence), sentence)
    topics_of = Counter(one for found in keyed.values() for one in found)
    return {
        topic: tuple(found[one] for one in sorted(found) if topics_of[one] == 1)
        for topic, found in keyed.items()
    }
