"""A batch size that is found fits, is fast, and changes no result."""

import json
import logging

import pytest
import torch

from fmerge.cli.app import main
from fmerge.evaluation import batch_size as batch_sizes
from fmerge.evaluation.batch_size import find_batch_size
from fmerge.modules import FisherPass, TextClassifier
from fmerge.store import read_fisher
from tests.cli.run import data_config, fails
from tests.cli.test_out_of_memory import ERRORS, limit, merge


def run(*args):
    main([str(arg) for arg in args])


@pytest.fixture
def growing(monkeypatch):
    """Every pass takes equally long, so that only memory bounds a batch."""
    monkeypatch.setattr(
        batch_sizes, "find_batch_size", lambda run, most: find_batch_size(run, most, lambda: 0.0)
    )


def test_a_fisher_has_the_size_that_fits_and_the_values_of_any(
    zoo, tmp_path, monkeypatch, growing, caplog
):
    config = ["--config", data_config(zoo, tmp_path, "colour")]
    fisher = ["fisher", *config, "--expert", zoo.experts["colour"], "--output"]
    run(*fisher, tmp_path / "expected.h5", "--data.batch_size", "3")
    sizes = limit(monkeypatch, ERRORS["CUDA"], most=8, passing=0)
    with caplog.at_level(logging.WARNING):
        run(*fisher, tmp_path / "out.h5", "--data.batch_size", "auto")
    assert sizes[-3:] == [8, 8, 4] and max(sizes) == 16  # 20 examples, once 16 were too many
    assert "out of memory" not in caplog.text  # the longest were tried
    found, expected = read_fisher(tmp_path / "out.h5"), read_fisher(tmp_path / "expected.h5")
    assert found[1] == expected[1]
    rounding = 1e-7 * max(float(value.max()) for value in expected[0].values())
    for name, value in expected[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-5, atol=rounding)


@pytest.mark.slow
def test_a_search_has_a_size_for_scores_and_one_for_fishers(zoo, tmp_path, monkeypatch, growing):
    expected, output = tmp_path / "expected", tmp_path / "out"
    run(*merge(zoo, tmp_path, expected))
    whole, asked = TextClassifier.label_log_probs, {True: [], False: []}

    def limited(self, batch):
        n, differentiated = len(batch["labels"]), torch.is_grad_enabled()
        asked[differentiated].append(n)
        if n > (4 if differentiated else 8):
            raise ERRORS["CUDA"]
        return whole(self, batch)

    monkeypatch.setattr(TextClassifier, "label_log_probs", limited)
    run(*merge(zoo, tmp_path, output, "--data.batch_size", "auto"))
    sizes = json.loads((output / "inputs.json").read_text())["batch sizes"]
    assert sizes["scores"] == 8
    assert {size for kind, size in sizes.items() if kind.startswith("Fisher")} == {4}
    # 13 examples do not fill a batch of 16, 8 do: nothing failed but where a size was tried
    assert sum(n > 4 for n in asked[True]) == 2  # once for each task
    for name in ("trials.jsonl", "scores.json"):
        found, whole = (
            [json.loads(line) for line in (folder / name).read_text().split("\0")]
            if name == "scores.json"
            else [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for folder in (output, expected)
        )
        close(found, whole)


def close(found, expected):
    """Equal but for rounding."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            close(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    else:
        assert found == (
            pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected
        )


def test_an_interrupted_fisher_keeps_its_size(zoo, tmp_path, monkeypatch):
    config = ["--config", data_config(zoo, tmp_path, "colour"), "--save_every", "0"]
    fisher = ["fisher", *config, "--expert", zoo.experts["colour"], "--data.batch_size", "auto"]
    output = tmp_path / "out.safetensors"
    monkeypatch.setattr(batch_sizes, "find_batch_size", lambda run, most: 4)
    run(*fisher, "--output", tmp_path / "whole.safetensors")
    whole, left = FisherPass.predict_step, iter(range(3))

    def dying(self, batch, batch_idx, dataloader_idx=0):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(self, batch, batch_idx, dataloader_idx)

    monkeypatch.setattr(FisherPass, "predict_step", dying)
    with pytest.raises(SystemExit):
        run(*fisher, "--output", output)
    monkeypatch.setattr(FisherPass, "predict_step", whole)

    def never(run, most):
        raise AssertionError("a size was looked for again")

    monkeypatch.setattr(batch_sizes, "find_batch_size", never)
    run(*fisher, "--output", output)
    found, expected = read_fisher(output), read_fisher(tmp_path / "whole.safetensors")
    assert found[1] == expected[1]
    assert all(torch.equal(found[0][name], value) for name, value in expected[0].items())


def test_it_is_refused_where_the_result_would_depend_on_it(zoo, tmp_path, capsys):
    auto = ["--config", data_config(zoo, tmp_path, "colour"), "--data.batch_size", "auto"]
    fisher = ["fisher", *auto, "--expert", zoo.experts["colour"], "--output", tmp_path / "x.h5"]
    line = fails(capsys, *fisher, "--estimator", "rademacher")
    assert "--data.batch_size: is auto, but the signs of rademacher are drawn" in line
    assert "compare whole batches; give a number" in fails(capsys, *fisher, "--until", "0.5")
    fit = ["fit", *auto, "--model.path", zoo.base, "--output", tmp_path / "fit"]
    assert "which fisher and merge alone know" in fails(capsys, *fit)
    line = fails(capsys, *fisher, "--data.batch_size", "many")
    assert "--data.batch_size: expected a whole number or 'auto', but found '" in line
    assert not (tmp_path / "x.h5").exists() and not (tmp_path / "fit").exists()
