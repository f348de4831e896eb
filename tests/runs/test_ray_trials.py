"""Trials on Ray: those of a run without it, whatever is lost meanwhile."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

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

    assert run("ray", parallel=2) == run("pairs", batch=2)
    reports = [(tmp_path / one / "report.md").read_text() for one in ("ray", "pairs")]
    assert reports[0].replace("/ray/", "/pairs/") == reports[1]


def test_ray_is_quiet_and_gone_in_the_end(zoo, tmp_path, capfd):
    capfd.readouterr()
    made = merge(zoo, tmp_path / "ray", optimizer={"parallel": 2})
    said = capfd.readouterr()
    assert made.count("\n") >= 6 and "ray" not in said.err.lower().replace(str(tmp_path), "")
    assert not ray.is_initialized() and workers() == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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


def command(zoo, output):
    experts = [f"--experts.{task}={path}" for task, path in zoo.experts.items()]
    config = output.parent / "data.yaml"
    tasks = {
        task: {"class_path": "TextFiles", "init_args": {**files, "labels": tiny.LABELS[task]}}
        for task, files in zoo.tasks.items()
    }
    config.write_text(json.dumps({"data": {"batch_size": 4, "tasks": tasks}}))
    return [
        *[sys.executable, str(ROOT / "cli.py"), "merge", "--config", str(config), *experts],
        *["--base", zoo.base, "--output", str(output), "--method", "TaskArithmetic"],
        *["--baselines", "experts", "--trainer.accelerator", "cpu", "--trainer.devices", "1"],
        *["--optimizer.search", "Sobol", "--optimizer.search.trials", "8"],
        *["--optimizer.parallel", "2"],
    ]


def test_a_command_that_is_killed_is_resumed_to_the_same_trials(zoo, tmp_path):
    output = tmp_path / "run"
    for at in (1, 4):
        process = subprocess.Popen(command(zoo, output), stdout=subprocess.DEVNULL)
        while trials(output).count("\n") < at and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 4 <= trials(output).count("\n") < 8
    done = subprocess.run(command(zoo, output), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = merge(zoo, tmp_path / "pairs", fmerge.search.Sobol(8), optimizer={"batch": 2})
    assert trials(output) == expected
    deadline = time.monotonic() + 30
    while workers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert workers() == [], "workers outlived their command"


def test_ctrl_c_ends_a_command_after_the_trials_that_run(zoo, tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(zoo, output), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while trials(output).count("\n") < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    made = trials(output).count("\n")
    assert f"stopped after {made} trials, which are saved" in said and 2 <= made < 8


def test_a_cluster_that_loses_a_machine_makes_all_trials(zoo, tmp_path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    others = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        output = tmp_path / "ray"
        search = lambda: fmerge.search.Sobol(trials=12, seed=1)  # noqa: E731
        ended, thread = killing(
            output, (4,), lambda: cluster.remove_node(others[0], allow_graceful=False)
        )
        options = {"parallel": 3, "ray_address": cluster.address}
        found = merge(zoo, output, search(), optimizer=options)
        ended.set()
        thread.join()
        assert sum(node["Alive"] for node in _nodes(cluster)) == 2
    finally:
        cluster.shutdown()
    assert found == merge(zoo, tmp_path / "three", search(), optimizer={"batch": 3})


def _nodes(cluster):
    ray.init(cluster.address, log_to_driver=False)
    try:
        return ray.nodes()
    finally:
        ray.shutdown()


def test_what_is_no_cluster_is_refused_within_seconds():
    with socket.create_server(("127.0.0.1", 0)) as other:
        begun = time.monotonic()
        with pytest.raises(UserError, match="is no cluster to work on: "):
            with ray_session(f"127.0.0.1:{other.getsockname()[1]}"):
                pass
        assert time.monotonic() - begun < 60


def test_more_trials_than_devices_are_refused(zoo, tmp_path):
    with pytest.raises(UserError, match=r"parallel: is 1000, but there are \d+ CPUs to make"):
        merge(zoo, tmp_path / "ray", fmerge.search.Sobol(2000), optimizer={"parallel": 1000})
