"""Trials on Ray: those of a run without it, whatever worker is lost meanwhile."""

import json
import os
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import fmerge
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.fisher import MERGE_DEFAULTS
from fmerge.methods import DFMerge, RegMean, TaskArithmetic
from fmerge.system.ray_session import ray_session
from tests import tiny
from tests.runs.dying import Dying

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def merge(zoo, output, search=None, method=None, optimizer=None, **options):
    data = MultiTask(
        {task: TextFiles(**zoo.tasks[task], labels=tiny.LABELS[task]) for task in zoo.tasks},
        batch_size=4,
    )
    found = fmerge.MergeOptimizer(
        search or fmerge.search.Sobol(trials=6, seed=1), **(optimizer or {})
    )
    trainer = fmerge.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[found],
    )  # fmt: skip
    trainer.merge(
        fmerge.modules.TextClassifier(), data, experts=zoo.experts, base=zoo.base,
        method=method or TaskArithmetic(), output=output, baselines="experts", **options,
    )  # fmt: skip
    return trials(output)


def assert_close(one, other):
    assert one.keys() == other.keys() and one["status"] == other["status"]
    assert one["coefficients"] == other["coefficients"]
    assert one["objective"] == pytest.approx(other["objective"], rel=1e-6)
    assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-6)


def trials(output):
    path = output / "trials.jsonl"
    return path.read_text() if path.is_file() else ""


@pytest.fixture(scope="module")
def _ray():
    """One Ray for several runs, which use what they are connected to."""
    with ray_session(None):
        yield


def searched(**options):
    return fmerge.search.AxSearch(trials=6, initial_trials=3, starts=False, **options)


CASES = {
    "Ax": (lambda: {"search": searched()}),
    "several objectives": (
        lambda: {"search": searched(), "optimizer": {"objective": ["mean", "worst"]}}
    ),
    "moving Fishers": (lambda: {"method": DFMerge()}),
    "a curve of them": (lambda: {"method": DFMerge(), "fisher": replace(MERGE_DEFAULTS, curve=3)}),
    "Grams": (lambda: {"method": RegMean()}),
    "refitted heads": (lambda: {"refit_heads": "trials"}),
    "no labels": (lambda: {"labels": "none", "optimizer": {"keep": 0.5}}),
    "groups": (lambda: {"optimizer": {"groups": 2}}),
}


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("name", CASES)
def test_two_workers_make_the_trials_of_a_sequential_run_in_pairs(zoo, tmp_path, name):
    def run(output, **optimizer):
        options = CASES[name]()
        options["optimizer"] = options.get("optimizer", {}) | optimizer
        return merge(zoo, tmp_path / output, **options)

    found, expected = run("ray", parallel=2), run("pairs", batch=2)
    if name == "no labels":  # agreements are real numbers, and rounded differently by a process
        for one, other in zip(found.splitlines(), expected.splitlines(), strict=True):
            assert_close(json.loads(one), json.loads(other))
        return
    assert found == expected
    reports = [(tmp_path / one / "report.md").read_text() for one in ("ray", "pairs")]
    assert reports[0].replace("/ray/", "/pairs/") == reports[1]


def workers(of="TrialWorker"):
    """Processes of workers, which Ray names by what they do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"ray::{of}" in path.read_text():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def killing(output, at, kill):
    """Kills something when the log of a run has so many trials, from a thread."""

    def watch():
        for count in at:
            while trials(output).count("\n") < count:
                if ended.wait(0.02):
                    return
            kill()

    ended = threading.Event()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return ended, thread


@pytest.mark.usefixtures("_ray")
def test_a_worker_that_is_killed_loses_no_trial(zoo, tmp_path):
    generator, killed = random.Random(0), []

    def kill():
        busy = workers("TrialWorker.attempt") or workers()
        if busy:
            killed.append(generator.choice(busy))
            os.kill(killed[-1], signal.SIGKILL)

    search = lambda: fmerge.search.Sobol(trials=12, seed=1)  # noqa: E731
    ended, thread = killing(tmp_path / "ray", (1, 4, 7), kill)
    found = merge(zoo, tmp_path / "ray", search(), optimizer={"parallel": 2})
    ended.set()
    thread.join()
    assert len(killed) == 3
    assert found == merge(zoo, tmp_path / "pairs", search(), optimizer={"batch": 2})


@pytest.mark.usefixtures("_ray")
def test_a_trial_that_kills_its_worker_twice_has_failed(zoo, tmp_path):
    method = Dying(spared=os.getpid())
    found = merge(zoo, tmp_path / "ray", method=method, optimizer={"parallel": 2})
    records = [json.loads(line) for line in found.splitlines()]
    searched = [one for one in records if "stage" not in one]
    dies = [next(iter(one["coefficients"].values())) > 0.6 for one in searched]
    assert [one["status"] == "failed" for one in searched] == dies and 0 < sum(dies) < 6
    reasons = {one.get("reason") for one in searched} - {None}
    assert reasons == {"on two workers: its worker was lost, as where memory is short"}


def test_more_trials_than_devices_are_refused(zoo, tmp_path):
    with pytest.raises(UserError, match=r"parallel: is 1000, but there are \d+ CPUs to make"):
        merge(zoo, tmp_path / "ray", fmerge.search.Sobol(2000), optimizer={"parallel": 1000})
