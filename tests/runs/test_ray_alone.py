"""Commands that start a Ray of their own, or use a cluster: killed, stopped, less a machine."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

import fmerge
from tests import tiny
from tests.runs.test_ray_trials import killing, merge, trials, workers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _closed_network():
    """A cluster listens on this machine's own address, which other tests are kept from."""


def test_ray_is_quiet_and_gone_in_the_end(zoo, tmp_path, capfd):
    capfd.readouterr()
    made = merge(zoo, tmp_path / "ray", optimizer={"parallel": 2})
    said = capfd.readouterr()
    assert made.count("\n") >= 6 and "ray" not in said.err.lower().replace(str(tmp_path), "")
    assert not ray.is_initialized() and workers() == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
    assert f"stopped after {made} trials, all saved" in said and 2 <= made < 8


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
        deadline = time.monotonic() + 60  # it is known to be lost after several silences
        while _alive(cluster) > 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert _alive(cluster) == 2
    finally:
        cluster.shutdown()
    assert found == merge(zoo, tmp_path / "three", search(), optimizer={"batch": 3})


def _alive(cluster):
    ray.init(cluster.address, log_to_driver=False)
    try:
        return sum(node["Alive"] for node in ray.nodes())
    finally:
        ray.shutdown()
