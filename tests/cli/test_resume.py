"""A killed merge goes on to the very trials of one that was not, and refuses what has changed."""

import json
import multiprocessing
import os
import random
import signal

import pytest
import torch
import yaml

from fmerge.cli.app import main
from fmerge.search import AxSearch, SearchSpace, Trial
from fmerge.store import RunFolder
from tests.cli.run import data_config, experts, fails


def merge(zoo, folder, output, *options):
    search = ["--optimizer.search", "AxSearch", "--optimizer.search.trials", "6"]
    return [
        *["merge", "--config", data_config(zoo, folder), *experts(zoo), "--base", zoo.base],
        *["--output", output, "--method", "TaskArithmetic", "--baselines", "experts"],
        *[*search, "--optimizer.search.initial_trials", "3", *options],
    ]


def run(*args):
    main([str(arg) for arg in args])


def trials(output):
    return (output / "trials.jsonl").read_text()


def killed_run(arguments, moment, times):
    """Kills itself at a moment of the trial loop, the given time it comes."""
    torch.set_num_threads(1)
    left = iter(range(times))

    def dying(function):
        def wrapped(*args, **kwargs):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    if moment == "asking":
        AxSearch.ask_batch = dying(AxSearch.ask_batch)
    elif moment == "telling":
        AxSearch.tell = dying(AxSearch.tell)
    elif moment == "logging":
        RunFolder.append = dying(RunFolder.append)
    else:  # in the middle of a line
        whole = RunFolder.append

        def half(self, record):
            if next(left, None) is None:
                with (self.path / "trials.jsonl").open("a") as log:
                    log.write(json.dumps(record)[:20])
                os.kill(os.getpid(), signal.SIGKILL)
            whole(self, record)

        RunFolder.append = half
    run(*arguments)


def kill(arguments, moment, times):
    process = multiprocessing.get_context("fork").Process(
        target=killed_run, args=(arguments, moment, times)
    )
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(("most", "batch"), [(5, 1), (20, 1), (8, 2)])
def test_many_kills_end_in_the_trials_of_the_uninterrupted_run(
    zoo, tmp_path, record_property, most, batch
):
    whole, output = tmp_path / "whole", tmp_path / "killed"
    run(*merge(zoo, tmp_path, whole, "--optimizer.batch", batch))
    arguments = merge(zoo, tmp_path, output, "--optimizer.batch", batch)
    generator, kills = random.Random(0), 0
    while kills < most:
        moment = generator.choice(["asking", "telling", "logging", "half a line"])
        # most kills come before the first new trial is on the disk: they must lose nothing
        code = kill(arguments, moment, generator.choice([0, 0, 0, 0, 1]))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        begun = trials(output).rpartition("\n")[0]
        assert trials(whole).startswith(begun), "a finished trial was lost or changed"
    if not (output / "report.md").is_file():
        run(*arguments)
    assert trials(output) == trials(whole)
    assert (output / "report.md").read_text() == (whole / "report.md").read_text()
    record_property("figure", f"{kills} kills of one search: the same trials.jsonl")
    assert kills >= most // 2


@pytest.mark.slow
def test_more_trials_can_be_added_to_a_finished_run(zoo, tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "grown"
    run(*merge(zoo, tmp_path, whole))
    run(*merge(zoo, tmp_path, output, "--optimizer.search.trials", "4"))
    short = [line for line in trials(output).splitlines() if '"stage": "average"' not in line]
    run(*merge(zoo, tmp_path, output))
    assert trials(output) == trials(whole) and trials(whole).splitlines()[:4] == short
    assert (
        yaml.safe_load((output / "config.yaml").read_text())["optimizer"]["search"]["init_args"][
            "trials"
        ]
        == 6
    )


@pytest.mark.slow
def test_more_trials_of_a_finished_run_can_be_interrupted(zoo, tmp_path):
    output = tmp_path / "run"
    search = ["--optimizer.search", "Sobol", "--optimizer.search.trials"]
    few, more = (
        [*["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--output", output],
         *["--method", "Isotropic", "--baselines", "experts", *search, count]]
        for count in ("1", "3")
    )  # fmt: skip
    run(*few)
    assert kill(more, "logging", 1) == -signal.SIGKILL
    assert trials(output).count("\n") == 2 and not (output / "report.md").exists()
    run(*more)
    assert trials(output).count("\n") == 4 and (output / "report.md").is_file()


@pytest.mark.slow
def test_what_has_changed_is_named(zoo, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = merge(zoo, tmp_path, output)
    assert kill(arguments, "asking", 2) == -signal.SIGKILL
    before = trials(output)
    for options, message in [
        (["--optimizer.search.seed", "3"], "optimizer.search.init_args.seed was 0 and is 3"),
        (["--method", "Isotropic"], "method.class_path was "),
        (["--data.batch_size", "5"], "data.batch_size was 4 and is 5"),
        (["--optimizer.search.trials", "3"], "optimizer.search.init_args.trials was 6 and is 3"),
    ]:
        line = fails(capsys, *arguments, *options)
        assert message in line and "--overwrite true" in line
    inputs = json.loads((output / "inputs.json").read_text())
    changed = inputs | {"expert": inputs["expert"] | {"colour": "other"}}
    (output / "inputs.json").write_text(json.dumps(changed))
    assert "its run was begun with another expert.colour" in fails(capsys, *arguments)
    (output / "inputs.json").write_text(json.dumps(inputs))
    (output / "trials.jsonl").write_text(before + '{"trial": 7}\n')
    assert "line 3 is not the record of trial 2" in fails(capsys, *arguments)
    (output / "trials.jsonl").write_text(before)
    run(*arguments)
    assert trials(output).startswith(before)
    assert "holds this very run, finished; ask for more trials" in fails(capsys, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("acquisition", ["nei", "ei", "ucb"])
def test_a_replayed_search_proposes_what_the_uninterrupted_one_would(acquisition):
    def score(coefficients):
        return 1 - sum((value - 0.3) ** 2 for value in coefficients.values())

    def search():
        made = AxSearch(trials=9, initial_trials=3, acquisition=acquisition, seed=5)
        made.start(SearchSpace(["sst-2", "b"]))
        return made

    def step(one, index):
        coefficients = one.ask()
        failed = index in {1, 5}
        one.tell(
            Trial(index, coefficients, status="failed")
            if failed
            else Trial(index, coefficients, score(coefficients))
        )

    whole = search()
    for index in range(9):
        step(whole, index)
    for cut in (2, 6):
        resumed = search()
        for trial in whole.history[:cut]:
            resumed.replay(Trial.from_record(json.loads(json.dumps(trial.as_record()))))
        for index in range(cut, 9):
            step(resumed, index)
        assert [t.coefficients for t in resumed.history] == [t.coefficients for t in whole.history]
