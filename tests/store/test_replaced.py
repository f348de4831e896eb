"""A finished run stays until the one that replaces it is finished, whenever that is killed."""

from pathlib import Path

import pytest

from fmerge.store import RunFolder

CONFIG = "experts: {a: x, b: y}\n"
INPUTS = {"base": None}
FILES = {"config.yaml": CONFIG, "trials.jsonl": "{}\n", "merged/a/w": "1", "report.md": "old"}


class KilledError(BaseException):
    """Stands for a kill."""


@pytest.fixture
def folder(tmp_path):
    """A finished run, and a file that is none of it."""
    for name, text in {**FILES, "mine.txt": "mine"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return RunFolder(tmp_path, CONFIG)


def contents(path):
    return {str(one.relative_to(path)): one.read_text() for one in path.rglob("*") if one.is_file()}


def begun(folder):
    folder.check(overwrite=True)
    folder.start(INPUTS)
    return folder


def test_a_run_that_is_discarded_leaves_the_earlier_one(folder):
    before = contents(folder.path)
    begun(folder).append({"trial": 0})
    (folder.path / "merged").mkdir()
    (folder.path / "merged" / "half").write_text("new")
    assert not (folder.path / "report.md").exists() and folder.replaces
    folder.discard()
    assert contents(folder.path) == before and not folder.replaces


def test_a_finished_run_removes_the_earlier_one(folder):
    begun(folder).settle()
    expected = {"config.yaml", "trials.jsonl", "inputs.json", "mine.txt"}
    assert contents(folder.path).keys() == expected


def test_an_unfinished_run_is_replaced_and_the_finished_one_before_it_stays(folder):
    before = contents(folder.path)
    begun(folder).append({"trial": 0})
    begun(folder).discard()
    assert contents(folder.path) == before


@pytest.mark.parametrize("after", range(10))
def test_a_kill_between_two_renames_loses_nothing(folder, after, monkeypatch):
    before = contents(folder.path)
    rename, count = Path.replace, iter(range(100))

    def killed(self, target):
        if ".repl" in f"{self}{target}" and next(count) == after:
            raise KilledError
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    try:
        begun(folder)
        folder.discard()
    except KilledError:
        pass
    else:
        pytest.fail("there were fewer renames")
    begun(folder).discard()
    assert contents(folder.path) == before
