"""fit, fisher, validate and merge on two hosts with two processes each."""

import signal
import time

import pytest

from fmerge.cli.app import main
from fmerge.store import read_fisher
from tests.cli.hosts import logs, slurm, start, torchrun, two_hosts
from tests.cli.run import data_config
from tests.cli.test_resume import merge, trials
from tests.compare import relative_error

CLUSTER = ["--trainer.num_nodes", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"]


@pytest.fixture
def hosts(tmp_path):
    with two_hosts(tmp_path / "hosts") as made:
        yield made


def run(*args):
    main([str(arg) for arg in args])


def complete(hosts, environment, *arguments):
    for process in start(hosts, environment, run, *arguments):
        process.join()
        assert process.exitcode == 0, logs(hosts)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [torchrun, slurm])
def test_the_fisher_of_two_hosts_is_that_of_one_process(
    zoo, tmp_path, hosts, environment, record_property
):
    command = [
        *["fisher", "--config", data_config(zoo, tmp_path, "colour")],
        *["--expert", zoo.experts["colour"], "--split", "validation"],
    ]
    run(*command, "--output", tmp_path / "one.safetensors")
    complete(hosts, environment, *command, "--output", "fisher.safetensors", *CLUSTER)
    expected, _ = read_fisher(tmp_path / "one.safetensors")
    found, provenance = read_fisher(hosts[0].folder / "fisher.safetensors")
    assert provenance["examples"] == 13
    error = relative_error(found, expected)
    assert error < 1e-6
    assert [one.name for one in hosts[1].folder.iterdir()] == ["log2", "log3"]
    where = "network namespaces" if hosts[0].namespace else "the loopback device"
    record_property(
        "figure",
        f"Fisher of 2 hosts in {where} by {environment.__name__}: relative error {error:.1e} of 1",
    )


@pytest.mark.slow
@pytest.mark.parametrize("environment", [torchrun, slurm])
def test_the_trials_of_two_hosts_are_those_of_one_process(zoo, tmp_path, hosts, environment):
    run(*merge(zoo, tmp_path, tmp_path / "one"))
    complete(hosts, environment, *merge(zoo, tmp_path, "merged", *CLUSTER))
    found, expected = trials(hosts[0].folder / "merged"), trials(tmp_path / "one")
    assert found == expected
    assert not (hosts[1].folder / "merged").exists()


def fit(zoo, folder, *options):
    return [
        *["fit", "--config", data_config(zoo, folder, "colour"), "--model.path", zoo.base],
        *["--output", "fit", "--model.learning_rate", "1e-3", *CLUSTER, *options],
    ]


@pytest.mark.slow
def test_a_fit_writes_on_the_first_host_and_resumes_where_all_see_it(zoo, tmp_path, hosts, capsys):
    complete(hosts, torchrun, *fit(zoo, tmp_path, "--trainer.max_epochs", "1"))
    assert (hosts[0].folder / "fit" / "expert" / "config.json").is_file()
    assert [one.name for one in hosts[1].folder.iterdir()] == ["log2", "log3"]
    name = "fit/checkpoints/best.ckpt"
    more = fit(zoo, tmp_path, "--trainer.max_epochs", "2", "--ckpt_path", name)
    started = start(hosts, torchrun, run, *more)
    for process in started:  # those of the first host do not wait for the others
        process.join()
        assert process.exitcode == 2, logs(hosts)
    lines = {one for one in logs(hosts).splitlines() if one.startswith("fmerge: error")}
    (line,) = lines
    assert f"--ckpt_path {name}: no such file" in line and "folder that they share" in line
    if hosts[0].namespace:
        assert line.startswith("fmerge: error: on node node1: ")
    (hosts[1].folder / "fit").symlink_to(hosts[0].folder / "fit")
    complete(hosts, torchrun, *more)
    data = data_config(zoo, tmp_path, "colour")
    scored = ["--config", data, "--ckpt_path", hosts[0].folder / name, "--model.path", zoo.base]
    complete(hosts, torchrun, "validate", *scored, *CLUSTER)
    capsys.readouterr()
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        run("validate", *scored)
    scores = [one for one in capsys.readouterr().out.splitlines() if "colour/" in one]
    assert scores and all(one in (hosts[0].folder / "log0").read_text() for one in scores)


@pytest.mark.slow
def test_a_merge_that_loses_a_host_ends_and_goes_on(zoo, tmp_path, hosts, record_property):
    more = ["--optimizer.search.trials", "12"]
    run(*merge(zoo, tmp_path, tmp_path / "one", *more))
    command = merge(zoo, tmp_path, "merged", *more, *CLUSTER)
    processes = start(hosts, torchrun, run, *command)
    log = hosts[0].folder / "merged" / "trials.jsonl"
    while not (log.is_file() and log.read_text().count("\n") > 4):
        assert all(process.is_alive() for process in processes), logs(hosts)
        time.sleep(0.02)
    for process in processes[2:]:
        process.kill()
    before = time.monotonic()
    for process in processes:
        process.join()
    seconds = time.monotonic() - before
    assert [process.exitcode for process in processes] == [1, 1, -signal.SIGKILL, -signal.SIGKILL]
    (line,) = (hosts[0].folder / "log0").read_text().partition("fmerge: error: ")[2].splitlines()
    assert line.startswith("process 0 lost its connection to the others; finished work is saved")
    complete(hosts, torchrun, *command)
    assert trials(hosts[0].folder / "merged") == trials(tmp_path / "one")
    record_property("figure", f"merge without its second host: ended in {seconds:.1f} s: {line}")
