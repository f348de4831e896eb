"""Unfinished work is read back by the same work alone."""

import pytest
import torch

from fmerge.store import begun_with, read_partial, remove_partial, write_partial

WORK = {"task": "colour", "examples": 20, "sizes": (1, 2), "until": None}
TENSORS = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "done": torch.tensor(3)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "out.unfinished.safetensors"
    write_partial(path, WORK, TENSORS)
    return path


def test_the_same_work_gets_its_tensors_back(path, tmp_path):
    found = read_partial(path, WORK)
    assert found.keys() == TENSORS.keys()
    assert torch.equal(found["w"], TENSORS["w"]) and int(found["done"]) == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (WORK | {"examples": 21}, "is of other work (examples was 20, is 21); beginning anew"),
        (WORK | {"seed": 0}, "is of other work (seed was None, is 0); beginning anew"),
        ({"task": "colour"}, "is of other work (examples was 20, is None); beginning anew"),
    ],
)
def test_other_work_begins_anew_and_says_why(path, caplog, work, line):
    assert read_partial(path, work) is None
    assert line in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"half"])
def test_what_a_kill_damaged_begins_anew(path, caplog, content):
    path.write_bytes(content)
    assert read_partial(path, WORK) is None and "not readable" in caplog.text
    assert begun_with(path, WORK, "size") is None


def test_nothing_there_is_nothing_to_say(tmp_path, caplog):
    assert read_partial(tmp_path / "absent", WORK) is None and not caplog.text
    assert begun_with(tmp_path / "absent", WORK, "size") is None


def test_one_value_is_read_by_work_that_leaves_it_open(path):
    open_work = {key: value for key, value in WORK.items() if key != "examples"}
    assert begun_with(path, open_work, "examples") == 20
    assert begun_with(path, open_work | {"task": "animal"}, "examples") is None
    assert begun_with(path, WORK, "absent") is None


def test_removing_takes_what_a_kill_left_beside_it(path, tmp_path):
    (tmp_path / f".{path.name}.x1y2.safetensors").touch()
    remove_partial(path)
    assert not list(tmp_path.iterdir())
    remove_partial(path)
