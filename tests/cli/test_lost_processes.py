"""A process of several that is killed: the others end with one line, and the command goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fmerge.store import read_fisher
from tests.cli.run import ROOT, data_config, experts, in_process

DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def merge(zoo, folder, output):
    search = ["--optimizer.search", "Dirichlet", "--optimizer.search.draws", "60"]
    return [
        *["merge", "--config", data_config(zoo, folder), *experts(zoo), "--output", output],
        *["--method", "Isotropic", "--baselines", "experts", *search, *DDP],
    ]


def fisher(zoo, folder, output):
    return [
        *["fisher", "--config", data_config(zoo, folder, "colour"), "--output", output],
        *["--expert", zoo.experts["colour"], "--data.batch_size", "1", "--save_every", "0"],
        *["--estimator", "sampled", "--samples", "6000", *DDP],
    ]


def started_by(process):
    """The processes that a process started to train beside it."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"cli.py" in (folder / "cmdline").read_bytes():
                yield int(folder.name)


def alive(session):
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def lose(arguments, rank, ready, log):
    """Kills one of the two processes once it is ready; the exit code, seconds and what was said."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        (other,) = started_by(process.pid)
        os.kill(other if rank else process.pid, signal.SIGKILL)
        before = time.monotonic()
        code = process.wait(60)
        while alive(process.pid):
            assert time.monotonic() - before < 60, "the other process lives on"
            time.sleep(0.05)
        return code, time.monotonic() - before, log.read_text()
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def said(text):
    assert "Traceback" not in text
    (line,) = [one for one in text.splitlines() if one.startswith("fmerge: ")]
    assert "give the same command to resume" in line
    return line


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_merge_that_loses_a_process_ends_and_goes_on(zoo, tmp_path, rank, record_property):
    output, log = tmp_path / "out", tmp_path / "errors.txt"
    trials = output / "trials.jsonl"

    def ready():
        return trials.is_file() and len(trials.read_text().splitlines()) >= 3

    arguments = merge(zoo, tmp_path, output)
    code, seconds, text = lose(arguments, rank, ready, log)
    line = said(text)
    assert code == (1 if rank else -signal.SIGKILL)
    assert ("process 1 of 2 ended by SIGKILL" if rank else "the first process is gone") in line
    begun = trials.read_text().rpartition("\n")[0]
    assert "Resuming after" in in_process(*arguments)
    assert trials.read_text().startswith(begun)
    # and the plain average
    assert len(trials.read_text().splitlines()) == 61 and (output / "report.md").is_file()
    record_property("figure", f"merge without process {rank}: ended in {seconds:.1f} s: {line}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_fisher_that_loses_a_process_ends_and_goes_on(zoo, tmp_path, rank, record_property):
    output, log = tmp_path / "out.safetensors", tmp_path / "errors.txt"

    def ready():
        return len(list(tmp_path.glob("out.unfinished-*-of-2.safetensors"))) == 2

    arguments = fisher(zoo, tmp_path, output)
    code, seconds, text = lose(arguments, rank, ready, log)
    line = said(text)
    assert code == (1 if rank else -signal.SIGKILL)
    assert not output.exists() and ready()
    in_process(*arguments)
    in_process(*fisher(zoo, tmp_path, tmp_path / "whole.safetensors"))
    found, expected = read_fisher(output)[0], read_fisher(tmp_path / "whole.safetensors")[0]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not list(tmp_path.glob("*unfinished*"))
    record_property("figure", f"Fisher without process {rank}: ended in {seconds:.1f} s: {line}")


@pytest.mark.slow
def test_processes_that_saved_after_other_batches_stay_in_step(zoo, tmp_path):
    """With --until they meet after every batch: one that is ahead would wait for ever."""
    arguments = [*fisher(zoo, tmp_path, tmp_path / "out.safetensors"), "--until", "0.001"]

    def ready():
        return len(list(tmp_path.glob("out.unfinished-*-of-2.safetensors"))) == 2

    lose(arguments, 1, ready, tmp_path / "errors.txt")
    (tmp_path / "out.unfinished-1-of-2.safetensors").unlink()
    in_process(*arguments)
    in_process(*fisher(zoo, tmp_path, tmp_path / "whole.safetensors"), "--until", "0.001")
    found, expected = (read_fisher(tmp_path / f"{one}.safetensors") for one in ("out", "whole"))
    assert found[1] == expected[1]
    assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())
