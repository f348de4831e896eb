"""A task from an image data set: of the hub, a folder of its layout, or saved by `datasets`."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from fmerge.data.examples import Example, Split, TaskData
from fmerge.data.hub import read_rows
from fmerge.data.label_names import in_order
from fmerge.errors import UserError, check_within, known
from fmerge.store import StoredImage


class ImageSet(TaskData):
    """A classification task from a data set of images.

    Most image sets have no validation split: a share of the training split is then held out, at
    random. The test split is never used for it.

    Args:
        source: Hub id; a folder of the hub's layout, such as ``train/<class>/*.png`` or Parquet
            files; or a folder that ``save_to_disk`` wrote.
        name: Which configuration of the data set.
        image: Column of the image.
        label: Column of the class.
        labels: Names of the classes in the order of the experts' label numbers: those of the data
            set, or names for its numbers where it has none. Those of the data set when left out.
        train: The data set's name of the training split.
        validation: That of the validation split; held out from ``train`` when left out.
        test: That of the test split.
        held_out: The share of the training split that is held out.
        train_examples: Most training examples, chosen at random; all if left out.
        validation_examples: Most validation examples, likewise.
        seed: Seed of these choices.
        token: Access token of the hub, for private data sets.
    """

    def __init__(
        self,
        source: str,
        name: str | None = None,
        image: str = "image",
        label: str = "label",
        labels: list[str] | None = None,
        train: str = "train",
        validation: str | None = None,
        test: str = "test",
        held_out: float = 0.1,
        train_examples: int | None = None,
        validation_examples: int | None = None,
        seed: int = 0,
        token: str | None = None,
    ) -> None:
        check_within("ImageSet: held_out", held_out, "(0, 1)")
        limits = {"train": train_examples, "validation": validation_examples}
        for split, most in limits.items():
            if most is not None:
                check_within(f"ImageSet: {split}_examples", most, "[1, inf)")
        self.source = source
        self.name = name
        self.columns = (image, label)
        self.held_out = held_out
        self.seed = seed
        self.token = token
        self._given = None if labels is None else [str(one) for one in labels]
        self._splits: dict[str, str] = {"train": train, "test": test}
        if validation is not None:
            self._splits["validation"] = validation
        self._limits = limits
        self._tables: dict[str, Any] = {}
        self._read: dict[str, list[Example]] = {}

    @cached_property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the label numbers."""
        if self._given is None:
            return self._names
        if sorted(self._given) != sorted(self._names):
            raise UserError(
                f"ImageSet: labels are {known(self._given)}, but {self._where} has the classes "
                f"{known(self._names)}"
            )
        return self._given

    def examples(self, split: Split) -> Sequence[Example]:
        """Lists the images of a split; they are read when they are needed.

        Args:
            split: Which one.

        Returns:
            Mappings with ``image`` and ``label``.
        """
        if split not in self._read:
            self._read[split] = self._choose(split)
        return self._read[split]

    def _choose(self, split: Split) -> list[Example]:
        table = self._table("train" if split not in self._splits else split)
        chosen = list(range(len(table)))
        if split != "test" and "validation" not in self._splits:
            random.Random(self.seed).shuffle(chosen)
            count = max(1, round(self.held_out * len(chosen)))
            chosen = chosen[:count] if split == "validation" else chosen[count:]
        most = self._limits.get(split)
        if most is not None and most < len(chosen):
            chosen = random.Random(self.seed).sample(sorted(chosen), most)
        labels = table[self.columns[1]]
        where = f"{self._where}: its {self._splits.get(split, self._splits['train'])} split"
        return [
            {
                "image": _Row(table, i, self.columns[0], f"{where}, row {i}"),
                "label": self._label(labels[i], f"{where}, row {i}"),
            }
            for i in sorted(chosen)
        ]

    def _label(self, value: Any, where: str) -> int:
        own = str(value)
        if isinstance(value, int) and 0 <= value < len(self._names):
            own = self._names[value]
        if own not in self._names:
            found = known(self._names)
            raise UserError(f"{where}: its {self.columns[1]} is {value!r}; known: {found}")
        return self.labels.index(own)

    @property
    def _where(self) -> str:
        return f"{self.source}/{self.name}" if self.name else self.source

    @cached_property
    def _names(self) -> list[str]:
        """The classes: by the data set's numbers, if it has some."""
        table = self._table("train")
        names = getattr(table.features[self.columns[1]], "names", None)
        if names:
            return list(names)
        found = set(table.unique(self.columns[1]))
        if not all(isinstance(one, int) for one in found):
            return in_order({str(one) for one in found})
        # numbers without names: labels names them, in their order
        return self._given or [str(number) for number in range(max(found) + 1)]

    def _table(self, split: str) -> Any:
        if split not in self._tables:
            import datasets

            name = self._splits[split]
            table = read_rows(self.source, name, self.name, self.columns, self.token)
            image = self.columns[0]
            if not isinstance(table.features[image], datasets.Image):
                raise UserError(
                    f"{self._where}: its column '{image}' holds no images "
                    f"({type(table.features[image]).__name__}); name the right one with image"
                )
            # decoded where they are used, by Pillow, so that an error names the row
            self._tables[split] = table.cast_column(image, datasets.Image(decode=False))
        return self._tables[split]


@final
@dataclass(frozen=True, repr=False)
class _Row(StoredImage):
    """An image of a data set."""

    table: Any
    row: int
    column: str
    where: str

    def read(self) -> bytes:
        """Reads the encoded image, from the data set or from the file that it names."""
        found = self.table[self.row][self.column] or {}
        if found.get("bytes") is not None:
            content: bytes = found["bytes"]
            return content
        with open(found["path"], "rb") as file:
            return file.read()
