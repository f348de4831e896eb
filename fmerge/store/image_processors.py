"""Reads image processors, which make a model's inputs from images."""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, final

from fmerge.errors import UserError
from fmerge.store.part_folder import holds, part_folder
from fmerge.store.preprocessors import Preprocessors
from fmerge.store.sources import hyperparameters, is_lightning, read_part

_LOG = logging.getLogger(__name__)

_FILES = ("preprocessor_config.json", "processor_config.json")


@final
class ImageProcessors(Preprocessors):
    """Image processors: each task keeps its own, as the models' inputs are of one layout anyway."""

    word = "image processor"
    auto = "AutoImageProcessor"

    def load(self, source: str) -> Any:
        """Reads the image processor that belongs to a checkpoint.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

        Returns:
            The processor.

        Raises:
            UserError: If it cannot be read, its file is missing, or Pillow is.
        """
        if find_spec("PIL") is None:
            raise UserError(
                f"{source}: its images need the package Pillow; run: pip install 'fmerge[vision]'"
            )
        place = _place(source)
        if _is_missing(place):
            raise UserError(
                f"{source}: holds no image processor ({_FILES[0]}); copy that of the model's own "
                "base into the folder"
            )
        return read_part(
            source,
            self.word,
            lambda auto: auto.AutoImageProcessor.from_pretrained(place, trust_remote_code=False),
            place,
        )

    def find(self, source: str) -> Any:
        """Reads a checkpoint's image processor, if it was saved with one.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

        Returns:
            The processor; None where the folder has none, or a hub id gives none, which is logged.

        Raises:
            UserError: If there is one that cannot be read.
        """
        place = _place(source)
        if _is_missing(place):
            return None
        try:
            return self.load(source)
        except UserError as error:
            if is_lightning(source) or Path(place).is_dir():
                raise
            _LOG.warning("%s; another expert's is used", error)
            return None

    def conflict(self, one: Any, other: Any) -> str:
        """Finds nothing: no processor forbids a merge."""
        return ""

    def differences(self, one: Any, other: Any) -> list[str]:
        """Compares all settings of two processors.

        Args:
            one: A processor.
            other: Another.

        Returns:
            The names of the settings that differ.
        """
        first, second = _settings(one), _settings(other)
        names = dict.fromkeys([*first, *second])
        return [name for name in names if first.get(name) != second.get(name)]

    def check(self, model: Any, own: Any, source: str) -> None:
        """Checks nothing: the module runs both together."""


IMAGE_PROCESSORS: Final = ImageProcessors()


def _place(source: str) -> str:
    folder = hyperparameters(Path(source))["path"] if is_lightning(source) else source
    return part_folder(folder, *_FILES)


def _is_missing(place: str) -> bool:
    # without its file transformers makes one of its own defaults, silently
    return Path(place).is_dir() and not holds(place, *_FILES)


def _settings(processor: Any) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(processor.to_json_string())
    return written
