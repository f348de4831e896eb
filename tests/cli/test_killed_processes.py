"""A search of two processes, killed again and again, ends in the uninterrupted trials."""

import multiprocessing
import os
import random
import shutil
import signal
import socket
import time

import pytest
import torch

from tests.cli.test_resume import merge, run, trials

DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
TRIALS = ["--optimizer.search.trials", "12"]


def one_of_two(arguments, rank, port):
    """Runs the command as one of two processes that something else started, as torchrun does."""
    torch.set_num_threads(1)
    os.environ |= {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"},
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        "TORCHELASTIC_RUN_ID": "test",
    }
    run(*arguments)


def two_processes(arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = [
        multiprocessing.get_context("fork").Process(target=one_of_two, args=(arguments, rank, port))
        for rank in range(2)
    ]
    for process in made:
        process.start()
    return made


def complete(arguments):
    for process in two_processes(arguments):
        process.join()
        assert process.exitcode == 0


def finished(output):
    log = output / "trials.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


def kill(processes, output, generator):
    """Kills both, some time after the next trials; whether they were still running."""
    goal, delay = finished(output) + generator.choice([0, 0, 0, 1]), generator.uniform(0, 1.5)
    deadline = time.monotonic() + 300
    while finished(output) < goal and all(one.is_alive() for one in processes):
        assert time.monotonic() < deadline, "no trial was finished in time"
        time.sleep(0.01)
    for process in processes:
        process.join(delay / 2)
    for process in generator.sample(processes, 2):
        process.kill()
        time.sleep(generator.uniform(0, 0.02))
    codes = []
    for process in processes:
        process.join()
        codes.append(process.exitcode)
    return codes == [-signal.SIGKILL] * 2


@pytest.mark.slow
def test_many_kills_of_two_processes_end_in_the_trials_of_the_uninterrupted_run(
    zoo, tmp_path, record_property
):
    whole, output = tmp_path / "whole", tmp_path / "killed"
    complete(merge(zoo, tmp_path, whole, *DDP, *TRIALS))
    arguments, generator = merge(zoo, tmp_path, output, *DDP, *TRIALS), random.Random(3)
    kills, reached = 0, []
    while kills < 20:
        kills += kill(two_processes(arguments), output, generator)
        reached.append(finished(output))
        if output.exists():
            assert trials(whole).startswith(trials(output).rpartition("\n")[0]), reached
        if (output / "report.md").is_file():  # the rest of the kills meet a second search
            assert trials(output) == trials(whole)
            shutil.rmtree(output)
    complete(arguments)
    assert trials(output) == trials(whole)
    assert (output / "report.md").read_text() == (whole / "report.md").read_text()
    assert len(set(reached)) > 3, "the kills were not spread over the search"
    record_property(
        "figure", f"{kills} kills of a search by 2 processes, after {reached} trials: the same log"
    )
