"""One run at a time; the lock of a dead run is taken over."""

import json
import multiprocessing
import os
import signal

import pytest

from fmerge.errors import UserError
from fmerge.store import (
    lock_of,
    only_run,
)


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
