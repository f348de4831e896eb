"""What docs/contributing.md tells to write works as it is written, in a folder of its own."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests import tiny
from tests.compare import assert_same
from tests.docs.pages import ROOT, files, process

PAGE = (ROOT / "docs" / "contributing.md").read_text()
PREFIX = "bert.encoder.layer.0."


@pytest.fixture
def folder(tmp_path):
    for name, text in files(PAGE).items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_page_has_these_files():
    parts = ["consensus", "scale", "lengths", "climb"]
    expected = [f"{prefix}{part}.py" for part in parts for prefix in ("", "test_")]
    assert list(files(PAGE)) == [*expected, "mine.yaml"]


@pytest.mark.slow
def test_its_tests_pass(folder):
    printed = process("-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder), folder=folder)
    assert "5 passed" in printed


def test_its_files_have_the_style_of_the_house(folder):
    ruff = pytest.importorskip("ruff", reason="ruff is not installed")
    # in a folder of its own fmerge is not the first party of the imports' order
    settings = (ROOT / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(
        settings.replace(
            "[tool.ruff.lint]", '[tool.ruff.lint]\nisort.known-first-party = ["fmerge"]'
        )
    )
    names = [name for name in files(PAGE) if name.endswith(".py") and not name.startswith("test_")]
    process("-m", ruff.__name__, "check", "--no-cache", *names, folder=folder)
    process("-m", ruff.__name__, "format", "--no-cache", "--check", ".", folder=folder)


@pytest.mark.slow
def test_its_merge_runs(folder, zoo):
    """A method, a task kind and a search from outside the package, by their class paths."""
    base = AutoModelForSequenceClassification.from_pretrained(zoo.base)
    labels = ["short", "long"]
    for seed, name in enumerate("ab"):
        tiny.save(tiny.fine_tuned(base, labels, seed=30 + seed), folder / f"path/to/model_{name}")
    shutil.copytree(zoo.base, folder / "path/to/base")
    (folder / "sentences.txt").write_text("\n".join(tiny.sentences(40, seed=3)))

    exported, command = re.search(r"```sh\nexport PYTHONPATH=(\S+)\n(.*?)```", PAGE, re.S).groups()
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == "fmerge"
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    process(str(ROOT / "cli.py"), *arguments, *quiet, folder=folder, path=exported)

    lines = (folder / "merged/trials.jsonl").read_text().splitlines()
    trials = [one for one in map(json.loads, lines) if "trial" in one and "stage" not in one]
    tried = [list(trial["coefficients"].values()) for trial in trials]
    better = 0.75 if trials[1]["objective"] > trials[0]["objective"] else 0.5
    assert tried == [[0.5, 0.5], [0.75, 0.75], [better - 0.25, better - 0.25]]

    best = max(trials, key=lambda trial: (trial["objective"], -trial["trial"]))
    coefficient = best["coefficients"]["a"]
    origin, *experts = (body(folder / f"path/to/{name}") for name in ("base", "model_a", "model_b"))
    expected = {}
    for name, tensor in origin.items():
        first, second = (expert[name] - tensor for expert in experts)
        expected[name] = tensor + (first * second > 0) * coefficient * (first + second)
    for task in "ab":
        assert_same(body(folder / "merged/merged" / task), expected, rtol=1e-5, atol=1e-7)


def body(model: Path):
    tensors = load_file(model / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
