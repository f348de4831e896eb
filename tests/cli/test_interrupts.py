"""Signals and kills: a search ends after its trial and goes on; a fit goes on after an epoch."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from lightning.fabric.plugins.io import torch_io
from safetensors.torch import load_file

from fmerge.cli.app import main
from fmerge.fisher import FisherAccumulator
from fmerge.modules import TextClassifier
from fmerge.store import LOCK, RunFolder, atomic, load_classifier, load_lightning
from tests import tiny
from tests.cli.run import ROOT, data_config, experts, fails


def run(*args):
    main([str(arg) for arg in args])


def merge(zoo, folder, output):
    search = ["--optimizer.search", "Dirichlet", "--optimizer.search.draws", "4"]
    return [
        *["merge", "--config", data_config(zoo, folder), *experts(zoo), "--output", output],
        *["--method", "Isotropic", "--baselines", "experts", *search],
    ]


def at(owner, name, times, action):
    """Does something at a use of a function, before it."""
    whole, left = getattr(owner, name), iter(range(times))

    def wrapped(*args, **kwargs):
        if next(left, None) is None:
            action()
        return whole(*args, **kwargs)

    setattr(owner, name, wrapped)


def send(*numbers):
    done = iter([True])

    def action():
        if next(done, False):
            for number in numbers:
                os.kill(os.getpid(), number)

    return action


def in_child(arguments, owner, name, times, action):
    """Runs a command in a forked process with something happening in it; its exit code."""

    def target():
        torch.set_num_threads(1)
        at(owner, name, times, action)
        run(*arguments)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(300)
    return process.exitcode


def trials(output):
    return (output / "trials.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_search_after_its_trial(zoo, tmp_path, capfd, number, code):
    whole, output = tmp_path / "whole", tmp_path / "out"
    run(*merge(zoo, tmp_path, whole))
    arguments = merge(zoo, tmp_path, output)
    capfd.readouterr()
    # in the middle of the second trial: a trial has 8 batches
    assert in_child(arguments, TextClassifier, "validation_step", 9, send(number)) == code
    printed = capfd.readouterr().err
    assert "stopping after this trial; once more to stop now" in printed
    assert "stopped after 2 trials, all saved; the same command resumes" in printed
    assert "Traceback" not in printed
    assert trials(output) == trials(whole)[:2]
    assert not (output / "report.md").exists() and not (output / LOCK).exists()
    run(*arguments)
    assert trials(output) == trials(whole)
    assert (output / "report.md").read_text() == (whole / "report.md").read_text()


def test_a_signal_ends_a_fisher_after_its_batch(zoo, tmp_path, capfd):
    config = ["--config", data_config(zoo, tmp_path, "colour")]
    output = tmp_path / "out.safetensors"
    arguments = ["fisher", *config, "--expert", zoo.experts["colour"], "--output", output]
    assert in_child(arguments, FisherAccumulator, "add", 1, send(signal.SIGINT)) == 130
    printed = capfd.readouterr().err
    assert "stopping after this batch" in printed and "stopped; the same command resumes" in printed
    assert "Traceback" not in printed
    unfinished = load_file(tmp_path / "out.unfinished-0-of-1.safetensors")
    assert int(unfinished["done"]) == 2 and not output.exists()


@pytest.mark.parametrize("numbers", [(signal.SIGINT,) * 2, (signal.SIGTERM,) * 2])
def test_a_second_signal_ends_it_at_once(zoo, tmp_path, capfd, numbers):
    output = tmp_path / "out"
    arguments = merge(zoo, tmp_path, output)
    code = in_child(arguments, TextClassifier, "validation_step", 9, send(*numbers))
    assert code == 128 + numbers[0]
    assert "Traceback" not in capfd.readouterr().err
    assert len(trials(output)) == 1 and not (output / LOCK).exists()


def test_handlers_are_given_back(zoo, tmp_path):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    run(*merge(zoo, tmp_path, tmp_path / "out"))
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(zoo, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = merge(zoo, tmp_path, output)
    ready, go_on = multiprocessing.Event(), multiprocessing.Event()

    def hold():
        ready.set()
        go_on.wait(60)

    process = multiprocessing.get_context("fork").Process(
        target=in_child, args=(arguments, RunFolder, "append", 1, hold)
    )
    process.start()
    assert ready.wait(60)
    line = fails(capsys, *arguments)
    assert "out: another run is writing here" in line and '"host"' in line
    config = ["--config", data_config(zoo, tmp_path, "colour"), "--output", output]
    line = fails(capsys, "fit", *config, "--model.path", zoo.base, "--overwrite", "true")
    assert "out: another run is writing here" in line
    go_on.set()
    process.join()
    assert (output / "report.md").is_file() and len(trials(output)) == 5  # the average last


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_fit_that_is_killed_again_and_again_ends_in_an_expert(zoo, tmp_path, record_property):
    output = tmp_path / "out"
    last = output / "checkpoints" / "last.ckpt"
    arguments = [
        *["fit", "--config", data_config(zoo, tmp_path, "colour"), "--model.path", zoo.base],
        *["--output", output, "--trainer.max_epochs", "3"],
    ]
    generator, kills = random.Random(3), []
    moments = [
        (TextClassifier, "training_step", 9),
        (TextClassifier, "validation_step", 9),
        (torch_io, "_atomic_save", 4),
        (atomic, "_sync", 3),
    ]
    while len(kills) < 8:
        owner, name, most = generator.choice(moments)
        resuming = ["--ckpt_path", last] if last.is_file() else ["--overwrite", "true"]
        code = in_child([*arguments, *resuming], owner, name, generator.randrange(most), die)
        if last.is_file():
            assert load_lightning(last)["epoch"] >= 0  # whole, whenever it is there
        if (output / "expert").is_dir():
            load_classifier(str(output / "expert"), "colour", tiny.LABELS["colour"])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills.append(name)
    if not (output / "expert").is_dir():
        run(*arguments, *(["--ckpt_path", last] if last.is_file() else ["--overwrite", "true"]))
    load_classifier(str(output / "expert"), "colour", tiny.LABELS["colour"])
    assert load_lightning(last)["epoch"] >= 2
    assert not list(output.glob(".*"))
    record_property("figure", f"a fit killed at {kills} ended in an expert")
    assert len(kills) >= 3


@pytest.mark.slow
def test_a_signal_to_the_first_of_two_processes_stops_both(zoo, tmp_path):
    output = tmp_path / "out"
    arguments = [
        *[*merge(zoo, tmp_path, output), "--optimizer.search.draws", "5000"],
        *["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not (output / "trials.jsonl").is_file() or len(trials(output)) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert f"stopped after {len(trials(output))} trials" in process.stderr.read()
        deadline = time.monotonic() + 60
        while alive(process.pid):  # the other process of its session
            assert time.monotonic() < deadline, "the second process lives on"
            time.sleep(0.1)
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def alive(session):
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True
