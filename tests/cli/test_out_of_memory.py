"""A pass that runs out of memory is repeated with smaller batches, to the same result."""

import json

import pytest
import torch

from fmerge.cli.app import main
from fmerge.modules import TextClassifier
from fmerge.store import read_fisher
from tests.cli.run import data_config, experts, fails


def run(*args):
    main([str(arg) for arg in args])


def merge(zoo, folder, output, *options):
    search = ["--optimizer.search", "Dirichlet", "--optimizer.search.draws", "3"]
    return [
        *["merge", "--config", data_config(zoo, folder), *experts(zoo), "--base", zoo.base],
        *["--output", output, "--method", "DFMerge", "--baselines", "all", *search, *options],
    ]


ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python": MemoryError(),
    "CPU": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
}


def limit(monkeypatch, error, most, passing=1):
    """Memory for so many examples; the first batches pass, as if a later one were longer."""
    whole, sizes = TextClassifier.outputs, []

    def limited(self, batch):
        sizes.append(len(batch["labels"]))
        if sizes[-1] > most and len(sizes) > passing:
            raise error
        return whole(self, batch)

    monkeypatch.setattr(TextClassifier, "outputs", limited)
    return sizes


@pytest.mark.parametrize(
    "kind", [pytest.param(one, marks=() if one == "CUDA" else pytest.mark.slow) for one in ERRORS]
)
def test_a_search_goes_on_with_smaller_batches(zoo, tmp_path, monkeypatch, caplog, kind):
    expected, output = tmp_path / "expected", tmp_path / "out"
    # plain validation and Fishers: 13 and 20 examples, whose second batch does not fit
    method = ["--method", "Isotropic" if kind == "CPU" else "DFMerge"]
    run(*merge(zoo, tmp_path, expected, *method))
    sizes = limit(monkeypatch, ERRORS[kind], most=4)
    run(*merge(zoo, tmp_path, output, *method, "--data.batch_size", "8"))
    assert (output / "trials.jsonl").read_text() == (expected / "trials.jsonl").read_text()
    assert (output / "scores.json").read_text() == (expected / "scores.json").read_text()
    assert "out of memory with batches of 8" in caplog.text
    assert "repeated with batches of 4" in caplog.text
    assert sum(size > 4 for size in sizes) == 2  # once and for all


def test_a_fisher_goes_on_with_smaller_batches(zoo, tmp_path, monkeypatch):
    config = ["--config", data_config(zoo, tmp_path, "colour"), "--save_every", "0"]
    fisher = ["fisher", *config, "--expert", zoo.experts["colour"], "--output"]
    run(*fisher, tmp_path / "expected.h5", "--data.batch_size", "2")
    limit(monkeypatch, ERRORS["CUDA"], most=2, passing=2)
    run(*fisher, tmp_path / "out.h5", "--data.batch_size", "8")
    found, expected = read_fisher(tmp_path / "out.h5"), read_fisher(tmp_path / "expected.h5")
    assert found[1] == expected[1] and found[1]["examples"] == 20
    assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())
    assert not list(tmp_path.glob("*unfinished*"))


@pytest.mark.slow
def test_where_one_example_is_too_much_the_trial_has_failed(zoo, tmp_path, monkeypatch, capsys):
    whole, left = TextClassifier.outputs, iter(range(3))

    def limited(self, batch):
        if next(left, None) is not None:  # with 4, 2 and 1 examples
            raise ERRORS["CUDA"]
        return whole(self, batch)

    monkeypatch.setattr(TextClassifier, "outputs", limited)
    arguments = merge(zoo, tmp_path, tmp_path / "out", "--method", "Isotropic")
    run(*arguments)
    trials = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").open()]
    assert [one["status"] for one in trials] == ["failed", "ok", "ok", "ok"]  # the last: average
    assert "out of memory with one example in a batch (CUDA out of memory" in trials[0]["reason"]
    limit(monkeypatch, ERRORS["Python"], most=0, passing=0)
    config = ["--config", data_config(zoo, tmp_path, "colour"), "--output", tmp_path / "x.h5"]
    line = fails(capsys, "fisher", *config, "--expert", zoo.experts["colour"])
    assert "out of memory with one example in a batch (MemoryError)" in line


def test_other_errors_pass(zoo, tmp_path, monkeypatch):
    limit(monkeypatch, RuntimeError("a bug"), most=0, passing=0)
    with pytest.raises(RuntimeError, match="a bug"):
        run(*merge(zoo, tmp_path, tmp_path / "out", "--method", "Isotropic"))
