"""Which end of a process is told, and in which words; which strategies are refused."""

import os
import signal
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, subprocess_script

from fmerge.errors import UserError
from fmerge.system import watchdog
from fmerge.system.fsdp2 import FSDP2Strategy
from fmerge.system.watchdog import LostProcessError, check_strategy, watch_processes

GONE = RuntimeError("[gloo/pair.cc:1] Connection closed by peer [127.0.0.1]:1")


class Process:
    """A process that was started: running (None) or ended with a code."""

    def __init__(self, code):
        self.code, self.killed = code, False

    def poll(self):
        return self.code

    def kill(self):
        self.killed = True


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """The first process, which has started none yet, and waits for nothing."""
    monkeypatch.setattr(watchdog, "_started", [])
    monkeypatch.setattr(watchdog, "_starter", [])
    monkeypatch.setattr(watchdog, "_GRACE", 0.01)
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("FMERGE_STARTED_BY", raising=False)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([None, None], None),
        ([0, None], None),
        ([None, 3], "process 2 of 3 ended with exit code 3; finished work is saved"),
        # the second one died, and the first one failed because of it
        ([1, -signal.SIGTERM], "process 2 of 3 ended by SIGTERM; finished"),
        ([-signal.SIGKILL, 1], "process 1 of 3 ended by SIGKILL, as where memory is short; fin"),
    ],
)
def test_the_first_cause_is_told(codes, expected):
    line = watchdog._first_lost([Process(code) for code in codes])
    assert line is None if expected is None else line.startswith(expected)


def test_a_lost_process_is_told_from_a_bug():
    with pytest.raises(RuntimeError, match="a bug"), watch_processes():
        raise RuntimeError("a bug")
    with pytest.raises(LostProcessError, match="process 1 of 2 ended with exit code 4"):
        with watch_processes():
            watchdog._started.append(Process(4))
            raise GONE
    with pytest.raises(RuntimeError, match="closed by peer") as found, watch_processes():
        watchdog._started.append(Process(None))  # it is alive: something else is wrong
        raise GONE
    assert found.type is RuntimeError


def test_another_machine_is_told_by_rank(monkeypatch):
    monkeypatch.setenv("RANK", "5")
    with pytest.raises(LostProcessError, match="process 5 lost its connection to the others; fin"):
        with watch_processes():
            raise GONE


def test_a_started_process_leaves_the_words_to_the_first(monkeypatch):
    monkeypatch.setenv("FMERGE_STARTED_BY", str(os.getppid()))
    monkeypatch.setattr(watchdog.threading, "Thread", lambda **_: SimpleNamespace(start=len_of_0))
    with pytest.raises(LostProcessError, match="^$"), watch_processes():
        assert watchdog._starter == [os.getppid()]
        raise GONE
    assert os.environ["FMERGE_STARTED_BY"] == str(os.getppid())


def len_of_0():
    """Starts no thread."""


def test_whatever_ends_the_first_process_ends_the_others():
    started = Process(None)
    with pytest.raises(KeyboardInterrupt), watch_processes():
        assert os.environ["FMERGE_STARTED_BY"] == str(os.getpid())
        watchdog._started.append(started)
        raise KeyboardInterrupt
    assert started.killed and "FMERGE_STARTED_BY" not in os.environ


def test_lightnings_observer_comes_back():
    before = subprocess_script._launch_process_observer
    with watch_processes():
        assert subprocess_script._launch_process_observer is watchdog._watch_started
    assert subprocess_script._launch_process_observer is before


def test_strategies_that_split_parameters_or_lose_results_are_refused():
    for allowed in (SingleDeviceStrategy("cpu"), DDPStrategy()):
        check_strategy(SimpleNamespace(strategy=allowed))
    with pytest.raises(UserError, match="FSDP splits a parameter over processes.* use fsdp2"):
        check_strategy(SimpleNamespace(strategy=object.__new__(FSDPStrategy)), split=True)
    with pytest.raises(UserError, match="FSDP2 splits a model .* a merge needs whole tensors"):
        check_strategy(SimpleNamespace(strategy=FSDP2Strategy()))
    with pytest.raises(UserError, match="ModelParallel has options of its own; use fsdp2"):
        check_strategy(SimpleNamespace(strategy=ModelParallelStrategy()), split=True)
    split = FSDP2Strategy()
    split._launcher = None
    check_strategy(SimpleNamespace(strategy=split), split=True)
    launcher = object.__new__(_MultiProcessingLauncher)
    spawned = type("DDPStrategy", (), {"launcher": launcher})()
    with pytest.raises(UserError, match="DDP runs in spawned or forked processes"):
        check_strategy(SimpleNamespace(strategy=spawned))
