"""A task from your own images: folders of classes, or tables of paths."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmerge.data.answer_columns import Labels, answer_columns
from fmerge.data.labelled import Labelled, LabelledFiles
from fmerge.data.tables import Files, Row, find_files, is_table, read_table
from fmerge.errors import UserError, known
from fmerge.store import ImageFile
from fmerge.system.paths import expand

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files of a folder that are images."""

_OTHERS = {"thumbs.db", "desktop.ini"}
"""What file managers leave in folders, beside hidden files."""


class ImageFiles(LabelledFiles):
    """A task of classes, several labels or numbers, from image files.

    A split is a folder with a folder of images for each class, such as ``train/cat/1.png``; or a
    table with a row for each image. Images are opened when they are needed.

    Args:
        train: Training examples: a folder; or a .csv, .tsv, .json, .jsonl or .parquet file, a
            pattern such as train-*.parquet, or a list of them.
        validation: Validation examples, which choose checkpoints and coefficients.
        test: Test examples, which score the result.
        image: A table's column of the image's path.
        label: A table's column of the class: its name, or its number. Where an example has any
            number of labels: a column of lists of names, or several columns, as of ``TextFiles``.
        labels: Names of the classes or labels in the order of the experts' outputs. When left out,
            the names that occur in the files, sorted: whole numbers as numbers, others as text.
            ``number``: the column holds numbers, and the task is a regression.
        root: The folder that the paths of tables begin in; that of the table when left out.
        separator: What stands between the labels of an example where a column holds their names
            in one text, such as ``;``.
        metrics: Metrics, whose mean is the score; those of the answers when left out.
    """

    def __init__(
        self,
        train: Files | None = None,
        validation: Files | None = None,
        test: Files | None = None,
        image: str = "image",
        label: str | list[str] = "label",
        labels: Labels | None = None,
        root: str | None = None,
        separator: str | None = None,
        metrics: list[str] | None = None,
    ) -> None:
        given = {"train": train, "validation": validation, "test": test}
        self._places = {split: _places(files) for split, files in given.items() if files}
        self._image = image
        self._root = None if root is None else Path(expand(root))
        super().__init__(list(self._places), answer_columns(label, labels, separator), metrics)

    def rows(self, split: str) -> Sequence[Labelled]:
        """Lists the images of a split.

        Args:
            split: Which one.

        Returns:
            Each image's row, and its example: a mapping with ``image``.

        Raises:
            UserError: If there are none, a file is missing, or a folder holds other files.
        """
        places = self._places[split]
        if isinstance(places, Path):
            found: list[Labelled] = [
                (
                    _Place(dict.fromkeys(self._answers.columns, name), path, 0),
                    {"image": ImageFile(path)},
                )
                for name, path in _in_folder(places, split)
            ]
        else:
            columns = [self._image, *self._answers.columns]
            rows = [row for file in places for row in read_table(file, columns, split)]
            found = [(row, {"image": self._file(row)}) for row in rows]
        if not found:
            names = places if isinstance(places, Path) else ", ".join(map(str, places))
            raise UserError(f"{names}: holds no images, but the {split} split needs some")
        return found

    def _file(self, row: Row) -> ImageFile:
        path = (self._root or row.file.parent) / expand(row.text(self._image))
        if not path.is_file():
            raise UserError(
                f"{row.at(self._image)}: there is no file {path}; paths begin in the table's "
                "folder, or in root"
            )
        return ImageFile(path)


@dataclass(frozen=True)
class _Place(Row):
    """An image in a folder of its class."""

    def at(self, column: str) -> str:
        """Names the image alone."""
        return str(self.file)


def _places(given: Files) -> Path | list[Path]:
    if isinstance(given, str) and (folder := Path(expand(given))).is_dir():
        return folder
    if isinstance(given, str) and not is_table(given):
        raise UserError(f"{given}: is neither a folder of images nor a table of their paths")
    return find_files(given)


def _in_folder(folder: Path, split: str) -> list[tuple[str, Path]]:
    """The class and path of each image, sorted."""
    classes = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = []
    for own in classes:
        if own.name.lower() in _OTHERS:
            continue
        if not own.is_dir():
            raise UserError(
                f"{own}: stands beside the folders of the classes; the {split} split needs a "
                "folder of images for each class, such as train/cat/1.png"
            )
        paths = [path for path in sorted(own.rglob("*")) if path.is_file()]
        for path in paths:
            if path.name.startswith(".") or path.name.lower() in _OTHERS:
                continue
            if path.suffix.lower() not in ENDINGS:
                raise UserError(
                    f"{path}: is no image by its ending; remove it, or give the images in a table "
                    f"(known: {known(ENDINGS)})"
                )
            found.append((own.name, path))
    return found
