"""Handwritten digits of scikit-learn as they are, rotated, inverted or shifted: image tasks."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from fmerge.data.examples import Example, Split, TaskData
from fmerge.errors import UserError, known

ANGLE: Final = 30
"""By how many degrees digits are rotated."""

CHANGES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "none": lambda image: image,
    "rotated": lambda image: image.rotate(ANGLE, resample=2),  # bilinear
    "inverted": lambda image: image.point(lambda grey: 255 - grey),
    "shifted": lambda image: image.transform(image.size, 0, (1, 0, -1, 0, 1, -1)),  # affine
}
"""What is done to an image of Pillow of 8 × 8 grey levels from 0 to 255."""

_SHARES: Final[Mapping[Split, tuple[int, int]]] = {
    "train": (0, 12), "validation": (12, 15), "test": (15, 20),
}  # fmt: skip
"""Each split's part of the digits, in twentieths."""


class Digits(TaskData):
    """Which digit an image of 8 × 8 pixels shows: the 1,797 images that scikit-learn ships.

    Nothing is downloaded. An image is in the same split whatever its change, so that a base that
    was trained on one has not seen the test images of another.

    Args:
        change: none; rotated by ``ANGLE``; inverted; or shifted by a pixel to the right and down.
        seed: Seed of the split.
    """

    def __init__(self, change: str = "none", seed: int = 0) -> None:
        if change not in CHANGES:
            raise UserError(f"Digits: unknown change '{change}'; known: {known(CHANGES)}")
        self.change = change
        self.seed = seed

    @property
    def labels(self) -> list[str]:
        """The digits."""
        return [str(digit) for digit in range(10)]

    def examples(self, split: Split) -> Sequence[Example]:
        """Lists the images of a split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``image``, of Pillow, and ``label``.
        """
        low, high = _SHARES[split]
        count = len(self._all)
        return self._all[low * count // 20 : high * count // 20]

    @cached_property
    def _all(self) -> list[Example]:
        from PIL import Image
        from sklearn.datasets import load_digits

        found = load_digits()
        # grey levels from 0 to 16
        images = [
            CHANGES[self.change](Image.fromarray((pixels * 255 / 16).round().astype("uint8")))
            for pixels in found.images
        ]
        order = list(range(len(images)))
        random.Random(self.seed).shuffle(order)
        return [{"image": images[i], "label": int(found.target[i])} for i in order]
