"""The commands of docs/tutorial.md and docs/python.md work as they are written, in their order."""

import re
import shutil

import pytest
import torch
import yaml

from fmerge.store.fisher_files import read_fisher
from tests import tiny
from tests.docs.pages import block, blocks, page, run

TUTORIAL = "docs/tutorial.md"
FIGURE = r"\d+\.\d ± \d+\.\d"


@pytest.fixture
def folder(zoo, tmp_path, monkeypatch):
    """The tutorial's models and files, tiny; a search takes a few trials."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(zoo.base, "path/to/base")
    config = yaml.safe_load(block(TUTORIAL, "yaml", "mine.yaml"))
    for name, task in zip("ab", zoo.experts, strict=True):
        shutil.copytree(zoo.experts[task], f"path/to/model_{name}")
        for split, file in zoo.tasks[task].items():
            shutil.copy(file, f"{name}_{split}.csv")
        # the heads of the tiny models are not in sorted order
        config["data"]["tasks"][name]["init_args"]["labels"] = tiny.LABELS[task]
    config["optimizer"] = {"search": {"class_path": "Sobol", "init_args": {"trials": 2}}}
    config["trainer"] = {"accelerator": "cpu", "enable_progress_bar": False}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.slow
def test_the_tutorial(folder, capsys):
    commands = blocks(TUTORIAL, "sh")
    assert len(commands) == 7
    for command in commands:
        run(command)
    shown = capsys.readouterr().out
    assert "TaskArithmetic" in shown and "FisherMerge" in shown
    for name in ("average", "searched", "fisher"):
        for task in "ab":
            assert (folder / name / "merged" / task / "model.safetensors").is_file()
    assert "| this merge |" in (folder / "fisher/report.md").read_text()
    fisher, _ = read_fisher(folder / "a.safetensors")
    assert float(sum(tensor.sum() for tensor in fisher.values())) > 0
    loading = block(TUTORIAL, "python", "from_pretrained")
    names: dict[str, object] = {}
    exec(compile(loading, TUTORIAL, "exec"), names)
    assert names["model"].config.id2label == dict(enumerate(tiny.LABELS["colour"]))


def test_the_fisher_of_any_module(capsys):
    torch.manual_seed(0)
    exec(compile(block("docs/python.md", "python", "estimate_fisher"), "python.md", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([3, 4])\n"


@pytest.mark.parametrize("name", ["README.md", "docs/choosing.md", "docs/concepts.md"])
def test_figures_stand_in_the_tables_of_results(name):
    rows = [line for line in page("docs/results.md").splitlines() if line.startswith("|")]
    measured = set(re.findall(FIGURE, "\n".join(rows)))
    found = re.findall(FIGURE, page(name))
    assert found and set(found) <= measured


def test_what_results_conclude_stands_in_their_tables():
    text, *tables = page("docs/results.md").partition("## Quality: topics")
    quality = text[text.index("**Quality.**") : text.index("**Search.**")]
    assert set(re.findall(FIGURE, quality)) <= set(re.findall(FIGURE, "".join(tables)))
