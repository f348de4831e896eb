"""Images that are read when they are needed, and the one way in which they are opened."""

import hashlib
import io
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fmerge.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class StoredImage(ABC):
    """An image in a file or a data set, of which nothing is in memory until it is opened.

    Attributes:
        where: What it is called in errors.
    """

    where: str

    @abstractmethod
    def read(self) -> bytes:
        """Reads the encoded image.

        Returns:
            Its bytes, as of a PNG or JPEG file.
        """


@final
@dataclass(frozen=True)
class ImageFile(StoredImage):
    """An image in a file of its own.

    Attributes:
        path: The file.
    """

    path: Path

    @property
    def where(self) -> str:  # type: ignore[override]
        """The file's path."""
        return str(self.path)

    def read(self) -> bytes:
        """Reads the file.

        Returns:
            Its bytes.
        """
        return self.path.read_bytes()


def open_image(image: Any) -> "Image":
    """Opens an image, upright and in red, green and blue, as transformers' pipelines do.

    Args:
        image: A ``StoredImage``, a path, or an image of Pillow.

    Returns:
        An image of Pillow.

    Raises:
        UserError: If it cannot be opened, or Pillow is missing.
    """
    Pillow, ImageOps = _pillow()
    if isinstance(image, str | Path):
        image = ImageFile(Path(image))
    where = image.where if isinstance(image, StoredImage) else f"an image ({type(image).__name__})"
    try:
        if isinstance(image, StoredImage):
            image = Pillow.open(io.BytesIO(image.read()))
        upright: Image = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # the decoders of Pillow raise nearly anything
        reason = "unknown format" if isinstance(error, Pillow.UnidentifiedImageError) else error
        reason = " ".join(str(reason).split()) or type(error).__name__
        raise UserError(
            f"{where}: cannot be opened as an image ({reason}); get it again, or leave it out"
        ) from error
    return upright


def is_image(value: Any) -> bool:
    """Tells whether something is an image, paths aside.

    Args:
        value: Anything.

    Returns:
        Whether it is a ``StoredImage`` or an image of Pillow.
    """
    if isinstance(value, StoredImage):
        return True
    pillow = sys.modules.get("PIL.Image")  # what has not been imported has made no image
    return pillow is not None and isinstance(value, pillow.Image)


def image_digest(image: Any) -> str:
    """Hashes an image.

    Args:
        image: A ``StoredImage``, a path, or an image of Pillow.

    Returns:
        The SHA-256 digest of the encoded image, in hexadecimal; of an image of Pillow that of its
        pixels.

    Raises:
        UserError: If it cannot be read.
    """
    if isinstance(image, str | Path):
        image = ImageFile(Path(image))
    if not isinstance(image, StoredImage):
        return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
    try:
        return hashlib.sha256(image.read()).hexdigest()
    except OSError as error:
        raise UserError(f"{image.where}: cannot be read ({error.strerror or error})") from error


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UserError(
            "images: need the package Pillow; run: pip install 'fmerge[vision]'"
        ) from error
    return Image, ImageOps
