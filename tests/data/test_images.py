"""Folders of classes, tables of paths and image sets, and what is said of damaged ones."""

import csv
import json
import pickle
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from fmerge.data import ImageFiles, ImageSet, MultiTask
from fmerge.data.examples import check_examples, check_images, digest
from fmerge.errors import UserError
from fmerge.store import open_image
from tests import tiny_images

RGB = ["blue", "green", "red"]


def pixels(image):
    return torch.frombuffer(bytearray(open_image(image).tobytes()), dtype=torch.uint8)


def same_images(examples, pictures):
    assert len(examples) == len(pictures)
    assert all(
        pixels(one["image"]).equal(pixels(other))
        for one, other in zip(examples, pictures, strict=True)
    )


@pytest.fixture
def folder(tmp_path):
    return Path(tiny_images.write_folder(tmp_path / "train", RGB, 7, seed=0))


def test_a_folder_of_classes(folder):
    (folder / ".hidden").touch()
    (folder / "red" / "Thumbs.db").touch()
    task = ImageFiles(train=str(folder))
    assert task.labels == RGB
    assert task.has("train") and not task.has("test")
    found = task.examples("train")
    assert [one["label"] for one in found] == [0, 0, 0, 1, 1, 2, 2]
    pictures = tiny_images.pictures(7, 0, classes=3)
    same_images(found, [pictures[i] for i in (0, 3, 6, 1, 4, 2, 5)])
    with pytest.raises(UserError, match="ImageFiles: no file is given for the test split"):
        task.examples("test")


@pytest.mark.parametrize("root", [False, True])
def test_a_table_of_paths(folder, tmp_path, root):
    (tmp_path / "tables").mkdir()
    table = tmp_path / ("tables" if root else ".") / "test.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "colour"])
        rows.writerow(["train/red/02.png", "red"])
        rows.writerow([str(folder / "blue" / "00.png"), "blue"])
    options = {"root": str(tmp_path)} if root else {}
    task = ImageFiles(test=str(table), image="file", label="colour", labels=RGB[::-1], **options)
    assert task.labels == RGB[::-1]
    assert [one["label"] for one in task.examples("test")] == [0, 2]
    pictures = tiny_images.pictures(7, 0, classes=3)
    same_images(task.examples("test"), [pictures[2], pictures[0]])


def test_several_labels_and_numbers(folder, tmp_path):
    rows = [
        {"image": "train/red/02.png", "tags": ["warm", "dark"], "score": 0.5},
        {"image": "train/blue/00.png", "tags": [], "score": -1},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tags = ImageFiles(train=str(tmp_path / "a.jsonl"), label="tags")
    assert tags.labels == ["dark", "warm"]
    assert [one["label"] for one in tags.examples("train")] == [[1, 1], [0, 0]]
    assert list(tags.metrics) == ["micro_f1", "average_precision"]
    numbers = ImageFiles(train=str(tmp_path / "a.jsonl"), label="score", labels="number")
    assert [one["label"] for one in numbers.examples("train")] == [0.5, -1.0]
    assert list(numbers.metrics) == ["pearson"]


@pytest.mark.parametrize("kind", ["layout", "saved", "parquet"])
def test_an_image_set(tmp_path, kind):
    source = tmp_path / kind
    for split, n in {"train": 20, "test": 4}.items():
        tiny_images.write_folder(tmp_path / "layout" / split, RGB, n, seed=n)
    if kind != "layout":
        read = datasets.load_dataset(
            str(tmp_path / "layout"), cache_dir=str(tmp_path / "cache"), keep_in_memory=True
        )
    if kind == "saved":
        read.save_to_disk(str(source))
    if kind == "parquet":
        for split in read:
            read[split].to_parquet(source / "data" / f"{split}-00000-of-00001.parquet")
    task = ImageSet(str(source), held_out=0.2, train_examples=10, labels=["red", "green", "blue"])
    assert task.labels == ["red", "green", "blue"]
    found = {split: task.examples(split) for split in ("train", "validation", "test")}
    assert {split: len(some) for split, some in found.items()} == {
        "train": 10, "validation": 4, "test": 4,
    }  # fmt: skip
    # sorted by class on the disk
    pictures = tiny_images.pictures(4, 4, classes=3)
    same_images(found["test"], [pictures[i] for i in (0, 3, 1, 2)])
    assert [one["label"] for one in found["test"]] == [2, 2, 1, 0]
    hashes = [digest([one]) for some in found.values() for one in some]
    assert len(set(hashes)) == 18  # nothing is in two splits
    copied = pickle.loads(pickle.dumps(found["test"][0]["image"]))
    assert pixels(copied).equal(pixels(found["test"][0]["image"]))


def test_numbers_without_names(tmp_path):
    read = datasets.Dataset.from_dict(
        {"image": tiny_images.pictures(6, 0, 3), "digit": [0, 1, 2, 0, 1, 2]},
        features=datasets.Features(image=datasets.Image(), digit=datasets.Value("int64")),
    )
    datasets.DatasetDict(train=read, test=read, dev=read).save_to_disk(str(tmp_path))
    options = {"label": "digit", "validation": "dev"}
    assert ImageSet(str(tmp_path), **options).labels == ["0", "1", "2"]
    task = ImageSet(str(tmp_path), **options, labels=["zero", "one", "two"])
    assert task.labels == ["zero", "one", "two"]
    assert [one["label"] for one in task.examples("validation")] == [0, 1, 2] * 2
    with pytest.raises(UserError, match="its digit is 2; known: one, zero"):
        ImageSet(str(tmp_path), **options, labels=["zero", "one"]).examples("test")
    with pytest.raises(UserError, match="column 'digit' holds no images .Value.; name the right"):
        ImageSet(str(tmp_path), image="digit", label="image").examples("test")


def test_a_digest_is_of_the_contents(folder, tmp_path):
    copy = Path(tiny_images.write_folder(tmp_path / "copy", RGB, 7, seed=0))
    one, other = (ImageFiles(train=str(path)).examples("train") for path in (folder, copy))
    assert digest(one) == digest(other)
    plain = [{**example, "image": str(example["image"].path)} for example in other]
    assert digest(plain) == digest(one)
    tiny_images.pictures(1, 9, 3)[0].save(copy / "red" / "02.png")
    assert digest(other) != digest(one)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("red/notes.txt", r"red/notes.txt: is no image by its ending; remove it, or .*\.png"),
        ("a.png", "a.png: stands beside the folders of the classes; the train split needs"),
    ],
)
def test_other_files_in_a_folder(folder, name, says):
    (folder / name).touch()
    with pytest.raises(UserError, match=says):
        ImageFiles(train=str(folder)).examples("train")


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(UserError, match="absent: is neither a folder of images nor a table of"):
        ImageFiles(train="absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no images, but the test split needs some"):
        ImageFiles(train=str(folder), test=str(tmp_path / "empty")).examples("train")
    (tmp_path / "a.csv").write_text("image,label\nno.png,red\n")
    with pytest.raises(UserError, match="a.csv, row 2, column 'image': there is no file .*no.png"):
        ImageFiles(train=str(tmp_path / "a.csv")).examples("train")
    with pytest.raises(UserError, match="02.png: unknown label 'red'; known: blue, green"):
        ImageFiles(train=str(folder), labels=RGB[:2]).examples("train")
    with pytest.raises(UserError, match="example 1: its image is a int, but must be a path"):
        check_examples("x", RGB, [{"image": 3, "label": 0}])


def test_damaged_images_are_named(folder):
    (folder / "red" / "02.png").write_bytes((folder / "red" / "02.png").read_bytes()[:80])
    data = MultiTask({"x": ImageFiles(train=str(folder))})
    data.check_splits("train")
    with pytest.raises(UserError, match="x, example 6: .*red/02.png: cannot be opened as"):
        check_images("x", data.tasks["x"].examples("train"))


class _Damaged(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("red/02.png: cannot be opened")


def test_a_worker_hands_the_line_over():
    with pytest.raises(UserError, match="^red/02.png: cannot be opened$"):
        next(iter(DataLoader(_Damaged(), num_workers=1)))
