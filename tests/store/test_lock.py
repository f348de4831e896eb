"""One run at a time; a dead run's lock is taken over; full and closed disks in one line."""

import errno
import json
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
    lock_of,
    only_run,
    recover_folder,
    save_models,
    write_fisher,
    write_text,
)
from fmerge.store.atomic import append_line, replacing_folder
from tests import tiny


def forked(target, *args):
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def hold(lock, ready, go_on):
    with only_run(lock):
        ready.set()
        go_on.wait(60)


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    lock = lock_of(tmp_path / "deep" / "out", folder=True)
    ready, go_on = multiprocessing.Event(), multiprocessing.Event()
    process = forked(hold, lock, ready, go_on)
    assert ready.wait(60)
    message = f"out: another run is writing here .*{process.pid}.*name another --output"
    with pytest.raises(UserError, match=message), only_run(lock):
        raise AssertionError("two runs at once")
    go_on.set()
    process.join()
    assert not list(tmp_path.iterdir()), "the lock or a folder made for it stayed"
    with only_run(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
    lock = lock_of(tmp_path / "fisher.h5", folder=False)
    ready = multiprocessing.Event()
    process = forked(hold, lock, ready, multiprocessing.Event())
    assert ready.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert lock.exists() and list(tmp_path.iterdir()) == [lock]
    with only_run(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


def contend(lock, log, rounds):
    for _ in range(rounds):
        try:
            with only_run(lock):
                with log.open("a") as file:
                    file.write(f"+{os.getpid()}\n")
                with log.open("a") as file:
                    file.write(f"-{os.getpid()}\n")
        except UserError:
            pass  # the other one has it


def test_runs_that_contend_never_overlap(tmp_path):
    log = tmp_path / "log"
    processes = [forked(contend, tmp_path / "out" / ".fmerge.lock", log, 300) for _ in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = log.read_text().splitlines()
    assert len(lines) > 100
    for taken, given in zip(lines[::2], lines[1::2], strict=True):
        assert (taken[0], given[0], taken[1:]) == ("+", "-", given[1:])


def test_only_the_first_process_locks(tmp_path):
    with only_run(tmp_path / "out" / ".fmerge.lock", on=False):
        assert not list(tmp_path.iterdir())


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
    with pytest.raises(UserError, match="as the disk is full"):
        write_fisher(small_disk / "f.h5", {"w": torch.ones(10**6)}, {})
    with pytest.raises(UserError, match="as the disk is full"):
        write_fisher(small_disk / "f.safetensors", {"w": torch.ones(10**6)}, {})
    assert [path.name for path in small_disk.iterdir()] == ["merged"]
