"""fisher, fit and validate with a model that FSDP2 splits over two processes."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fmerge.cli.app import main
from fmerge.store import read_fisher
from tests.cli.hosts import Host, logs, start, torchrun
from tests.cli.run import data_config, fails
from tests.cli.test_resume import merge
from tests.compare import assert_same, relative_error

SPLIT = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]


def run(*args):
    main([str(arg) for arg in args])


def complete(host, *arguments):
    for process in start([host], torchrun, run, *arguments):
        process.join()
        assert process.exitcode == 0, logs([host])
    return logs([host])


@pytest.fixture
def host(tmp_path):
    folder = tmp_path / "host"
    folder.mkdir()
    return Host(0, "127.0.0.1", folder, None)


@pytest.mark.slow
def test_a_fisher_of_two_processes_is_that_of_one(zoo, tmp_path, host, record_property):
    command = [
        *["fisher", "--config", data_config(zoo, tmp_path, "colour"), "--save_every", "0"],
        *["--expert", zoo.experts["colour"], "--split", "validation"],
    ]
    run(*command, "--output", tmp_path / "one.safetensors")
    complete(host, *command, "--output", "fisher.safetensors", *SPLIT)
    expected, _ = read_fisher(tmp_path / "one.safetensors")
    found, provenance = read_fisher(host.folder / "fisher.safetensors")
    assert provenance["examples"] == 13
    error = relative_error(found, expected)
    assert error < 1e-6
    assert sorted(one.name for one in host.folder.iterdir()) == [
        "fisher.safetensors",
        "log0",
        "log1",
    ]
    record_property("figure", f"fisher --trainer.strategy fsdp2: relative error {error:.1e} of ddp")


@pytest.mark.slow
def test_a_fit_is_that_of_ddp_and_a_validation_too(zoo, tmp_path, host):
    data = data_config(zoo, tmp_path, "colour")
    given = ["--config", data, "--model.path", zoo.base]
    more = ["--trainer.max_epochs", "2", "--model.learning_rate", "1e-3"]
    fit = ["fit", *given, *more, "--trainer.devices", "2"]
    complete(host, *fit, "--output", "whole", "--trainer.strategy", "ddp")
    complete(host, *fit, "--output", "split", "--trainer.strategy", "fsdp2")
    whole, split = (
        AutoModelForSequenceClassification.from_pretrained(host.folder / one / "expert")
        for one in ("whole", "split")
    )
    base = AutoModelForSequenceClassification.from_pretrained(zoo.base)
    assert not torch.equal(next(base.parameters()), next(split.parameters()))
    assert_same(split.state_dict(), whole.state_dict(), rtol=1e-3, atol=1e-5)
    best = host.folder / "split" / "checkpoints" / "best.ckpt"
    scores = []
    for strategy in ("ddp", "fsdp2"):
        text = complete(
            *(host, "validate", *given, "--ckpt_path", best),
            *("--trainer.devices", "2", "--trainer.strategy", strategy),
        )
        scores.append([line.split() for line in text.splitlines() if "colour/" in line])
    assert scores[0] == scores[1] and scores[0]


@pytest.mark.slow
def test_a_merge_needs_whole_tensors(zoo, tmp_path, capsys):
    line = fails(capsys, *merge(zoo, tmp_path, tmp_path / "out", *SPLIT))
    assert "--trainer.strategy: FSDP2 splits a model over processes" in line
    assert "without data, tensor by tensor" in line and not (tmp_path / "out").exists()
    given = ["--expert", zoo.experts["colour"], "--output", tmp_path / "f.h5", *SPLIT]
    data = ["--config", data_config(zoo, tmp_path, "colour")]
    line = fails(capsys, "fisher", *data, *given, "--until", "0.1")
    assert "fsdp2 splits the model over processes, but --until and" in line
