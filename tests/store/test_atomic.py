"""Files and folders are whole or absent, whatever fails or is killed while they are written."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fmerge.errors import UserError
from fmerge.store import (
    RunFolder,
    atomic,
    check_new_file,
    check_new_folder,
    disk_trouble,
    recover_folder,
    remove_leftovers,
    replacing_file,
    save_models,
    write_fisher,
    write_text,
)
from fmerge.store.atomic import append_line, explaining, replacing_folder
from tests import tiny


def forked(target, *args):
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file.txt"]
    write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o644


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "folder"
    with replacing_folder(path) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(path) as temporary:
        (temporary / "b").write_text("half")
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["a"] and list(tmp_path.iterdir()) == [path]
    with replacing_folder(path) as temporary:
        (temporary / "c").write_text("new")
    assert [p.name for p in path.iterdir()] == ["c"] and path.stat().st_mode & 0o777 == 0o755


def test_lines_are_added(tmp_path):
    for line in ("one", "two"):
        append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_outputs_that_exist_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "empty", overwrite=False)
    check_new_folder(tmp_path / "absent", overwrite=False)
    check_new_folder(tmp_path / "full", overwrite=True)
    with pytest.raises(UserError, match="full: the folder is not empty; .* --overwrite"):
        check_new_folder(tmp_path / "full", overwrite=False)
    with pytest.raises(UserError, match="is a file"):
        check_new_folder(tmp_path / "full" / "x", overwrite=True)
    check_new_file(tmp_path / "full" / "x", overwrite=True)
    with pytest.raises(UserError, match="exists already"):
        check_new_file(tmp_path / "full" / "x", overwrite=False)
    with pytest.raises(UserError, match="is a folder"):
        check_new_file(tmp_path / "full", overwrite=True)


def test_only_the_temporary_files_of_one_name_are_left_overs(tmp_path):
    ours = [".trials.jsonl.a1b2.jsonl", ".trials.jsonl.c3.jsonl"]
    others = [
        "trials.jsonl",
        ".trials.jsonl.a1b2.txt",
        ".report.md.a1b2.md",
        "x.trials.jsonl.jsonl",
    ]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "trials.jsonl")
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(others)
    remove_leftovers(tmp_path / "absent" / "trials.jsonl")


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    """A rename that reaches the disk before the content would leave an empty file."""
    done = []
    sync, replace = atomic._sync, atomic.Path.replace
    monkeypatch.setattr(
        atomic, "_sync", lambda path: (done.append(f"sync {path.suffix or 'folder'}"), sync(path))
    )
    monkeypatch.setattr(
        atomic.Path, "replace", lambda self, to: (done.append("rename"), replace(self, to))[1]
    )
    write_text(tmp_path / "a.txt", "new")
    assert done == ["sync .txt", "rename", "sync folder"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, "x"),
            "/f/a: cannot be written, as the disk is full; free space on /f",
        ),
        (OSError(errno.EDQUOT, "x"), "/f/a: cannot be written, as the disk is full"),
        (RuntimeError("write failed: No space left on device"), "/f/a: cannot be written, as the"),
        (
            PermissionError(errno.EACCES, "denied"),
            "/f/a: cannot be written (denied); name an --out",
        ),
        (
            OSError(errno.EROFS, "read-only"),
            "/f/a: cannot be written (read-only); name an --output",
        ),
        (OSError(errno.EIO, "x"), None),
        (ValueError("x"), None),
    ],
)
def test_errors_of_the_disk_are_told_from_others(error, expected):
    line = disk_trouble(error, atomic.Path("/f/a"))
    assert line is None if expected is None else line.startswith(expected)
    with pytest.raises(UserError if expected else type(error)), explaining(atomic.Path("/f/a")):
        raise error


def dying_at(name, times):
    """Kills this process at some use of a function of the system."""
    module, left = (os, iter(range(times))) if hasattr(os, name) else (shutil, iter(range(times)))
    whole = getattr(module, name)

    def wrapped(*args, **kwargs):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    setattr(module, name, wrapped)


def replace(path, content, name, times):
    dying_at(name, times)
    with replacing_folder(path) as temporary:
        (temporary / "a").write_text(content)
        (temporary / "b").write_text(content)


@pytest.mark.slow
def test_a_kill_while_a_folder_is_swapped_leaves_the_old_or_the_new(tmp_path, record_property):
    path, generator = tmp_path / "merged", random.Random(0)
    with replacing_folder(path) as temporary:
        for name in "ab":
            (temporary / name).write_text("0")
    seen = {"old": 0, "new": 0}
    # one of these kills comes between the two renames
    moments = [(name, n) for name in ("replace", "rename", "fsync", "rmtree") for n in range(6)]
    for number in range(1, 60):
        name, times = generator.choice(moments)
        before = (path / "a").read_text()
        process = forked(replace, path, str(number), name, times)
        process.join()
        recover_folder(path)
        assert [one.name for one in tmp_path.iterdir()] == ["merged"]
        found = {(path / name).read_text() for name in "ab"}
        assert found in ({before}, {str(number)}), "neither the old nor the new one"
        if process.exitcode == 0:
            assert found == {str(number)}
        else:
            seen["old" if found == {before} else "new"] += 1
    record_property("figure", f"folders swapped under kills: {seen}")
    assert min(seen.values()) > 0


def test_between_the_renames_the_old_one_is_aside_and_comes_back(tmp_path):
    path = tmp_path / "merged"
    path.mkdir()
    (path / "a").write_text("old")
    path.rename(tmp_path / ".merged.old")
    (tmp_path / ".merged.new-x").mkdir()
    assert not RunFolder(tmp_path / "else").check(overwrite=False)
    RunFolder(tmp_path, "a: 1").check(overwrite=True)
    assert (path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_text(folder / "a.txt", "new"),
        lambda folder: append_line(folder / "a.txt", "new"),
        lambda folder: write_fisher(folder / "a.txt", {"w": torch.ones(3)}, {}),
    ],
)
def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path, monkeypatch, write):
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(UserError, match=r"a.txt: cannot be written, as the disk is full; free "):
        write(tmp_path)
    assert (tmp_path / "a.txt").read_text().startswith("old")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_closed_disk_is_one_line(tmp_path, monkeypatch, number):
    def closed(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.tempfile, "mkstemp", closed)
    monkeypatch.setattr(atomic.tempfile, "mkdtemp", closed)
    with pytest.raises(UserError, match=r"a.txt: cannot be written \(.*name an --output"):
        write_text(tmp_path / "a.txt", "new")
    with (
        pytest.raises(UserError, match=r"m: cannot be written \(.*"),
        replacing_folder(tmp_path / "m"),
    ):
        pass


def test_other_errors_of_the_disk_are_left_as_they_are(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(atomic.os, "fsync", broken)
    with pytest.raises(OSError, match="input/output"):
        write_text(tmp_path / "a.txt", "new")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a few hundred kilobytes, where this machine lets one be made."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_models_that_do_not_fit_a_real_disk(zoo, small_disk):
    model = AutoModelForSequenceClassification.from_pretrained(zoo.experts["colour"])
    save_models(small_disk / "merged", {"": model}, tiny.tokenizer())
    before = (small_disk / "merged" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="merged: cannot be written, as the disk is full; free"):
        many = {f"task{i}": model for i in range(9)}
        save_models(small_disk / "merged", many, tiny.tokenizer())
    assert (small_disk / "merged" / "model.safetensors").read_bytes() == before
    assert [path.name for path in small_disk.iterdir()] == ["merged"]


@pytest.mark.parametrize("ending", ["safetensors", "h5"])
def test_a_fisher_that_does_not_fit_a_real_disk(small_disk, ending):
    if ending == "h5":
        pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    with pytest.raises(UserError, match="as the disk is full"):
        write_fisher(small_disk / f"f.{ending}", {"w": torch.ones(10**6)}, {})
    assert list(small_disk.iterdir()) == []
