"""Adapters through the command line: Fisher, merges by four methods, folders that peft opens."""

import csv
import json

import pytest
import torch
from peft import PeftModel  # noqa: F401  # conftest leaves this file out where peft is missing
from transformers import AutoModelForSequenceClassification

from fmerge.cli.app import main
from fmerge.store import load_classifier, read_adapter, read_fisher
from tests import tiny
from tests.adapters import CLASSIFIER, opened, wrapped
from tests.cli.run import ROOT, data_config, fails
from tests.compare import assert_same

LORA = {
    "colour": {"r": 2, "target_modules": ["query", "value"]},
    "animal": {"r": 3, "target_modules": ["query", "output.dense"], "use_rslora": True},
}
IDS = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])


def run(*arguments):
    main([str(one) for one in arguments])


def fine_tuned(zoo, task, folder):
    """An adapter that peft trains on a task for a few steps; its tokenizer stays the base's."""
    labels = tiny.LABELS[task]
    options = {"num_labels": len(labels), "ignore_mismatched_sizes": True}
    model = wrapped(CLASSIFIER, zoo.base, options, task_type="SEQ_CLS", **LORA[task])
    with open(zoo.tasks[task]["train"], newline="") as file:
        rows = list(csv.DictReader(file))
    batch = tiny.tokenizer()([row["text"] for row in rows], padding=True, return_tensors="pt")
    batch["labels"] = torch.tensor([labels.index(row["label"]) for row in rows])
    batch.pop("token_type_ids", None)
    steps = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        model(**batch).loss.backward()
        steps.step()
        steps.zero_grad()
    model.save_pretrained(folder)
    return str(folder), options


@pytest.fixture(scope="module")
def adapters(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    return {task: fine_tuned(zoo, task, root / task) for task in LORA}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.slow
def test_adapters_from_fisher_to_merges_that_peft_opens(zoo, adapters, tmp_path, capsys):
    data, experts = data_config(zoo, tmp_path), []
    for task, (folder, _) in adapters.items():
        file = tmp_path / f"{task}.safetensors"
        fisher = ["fisher", "--config", data, "--expert", folder, "--task", task, "--output", file]
        run(*fisher, *(["--base", zoo.base] if task == "animal" else []))
        assert read_fisher(file)[1]["model"] == folder
        experts.append(f"--experts.{task}=" + json.dumps({"path": folder, "fisher": str(file)}))
    cases = {
        "Average": ["--adapter_rank", "sum"],
        "TIES": ["--adapter_rank", "2"],
        "FisherMerge": [],
        "DFMerge": ["--adapter_rank", "4", "--fisher.examples", "3"],
    }
    for method, options in cases.items():
        out = tmp_path / method
        search = ["--optimizer.search", "Sobol", "--optimizer.search.trials", "2"]
        if method == "Average":
            search = []
        common = ["merge", "--config", data, *experts, "--method", method, *search, *options]
        if method == "Average":
            capsys.readouterr()
            run(*common, "--output", out, "--dry_run", "true")
            assert "(2 adapters at most, and what has no factors)" in capsys.readouterr().out
            assert not out.exists()
        run(*common, "--output", out)
        page = " ".join((out / "report.md").read_text().split())
        assert zoo.base in page
        for task, (_, sizes) in adapters.items():
            folder = out / "merged" / task
            own = load_classifier(str(folder), task)
            assert list(own.config.id2label.values()) == tiny.LABELS[task]
            if "--adapter_rank" in options:
                assert read_adapter(folder).base == zoo.base
                assert not (folder / "model.safetensors").exists()
                theirs = opened(folder, options=sizes, merge=False)
                assert "of the squared norm of ΔW; by layer: bert.encoder.layer.0 " in page
                assert "PeftModel.from_pretrained" in (folder / "README.md").read_text()
            else:
                theirs = AutoModelForSequenceClassification.from_pretrained(folder)
            torch.testing.assert_close(logits(own), logits(theirs), rtol=1e-5, atol=1e-5)
    merged = [
        dict(opened(folder, options=sizes).bert.named_parameters())
        for folder, sizes in adapters.values()
    ]
    average = {name: (merged[0][name] + merged[1][name]) / 2 for name in merged[0]}
    saved = load_classifier(str(tmp_path / "Average" / "merged" / "colour"), "colour")
    found = dict(saved.bert.named_parameters())
    assert_same(found, average, rtol=1e-6, atol=1e-6)
    assert "keeps 100% of the squared norm" in (tmp_path / "Average" / "report.md").read_text()


@pytest.mark.slow
def test_the_shipped_configuration(zoo, adapters, tmp_path):
    experts = [f"--experts.{task}={folder}" for task, (folder, _) in adapters.items()]
    common = ["merge", "--config", ROOT / "configs/lora/merge.yaml", *experts]
    run(*common, "--output", tmp_path / "out", "--trainer.accelerator", "cpu")
    page = " ".join((tmp_path / "out/report.md").read_text().split())
    assert "adapter: rank 16, which keeps 100% of the squared norm of ΔW" in page
    folder = tmp_path / "out/merged/animal"
    theirs = opened(folder, options=adapters["animal"][1], merge=False)
    own = load_classifier(str(folder), "animal")
    torch.testing.assert_close(logits(own), logits(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_base_that_is_elsewhere_is_given(zoo, tmp_path, capsys):
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "/gone"}
    for task in LORA:
        (tmp_path / task).mkdir()
        (tmp_path / task / "adapter_config.json").write_text(json.dumps(config))
    experts = [f"--experts.{task}={tmp_path / task}" for task in LORA]
    line = fails(capsys, "merge", *experts, "--output", tmp_path / "out")
    assert "its base cannot be used: /gone: no such file or folder; --base names another" in line
    data = data_config(zoo, tmp_path)
    fisher = ["fisher", "--config", data, "--expert", tmp_path / "colour", "--task", "colour"]
    assert "its base cannot be used" in fails(capsys, *fisher, "--output", tmp_path / "f.h5")
    line = fails(capsys, *fisher, "--output", tmp_path / "f.safetensors", "--base", zoo.base)
    assert "colour: cannot read its weights: it holds no adapter_model.safetensors" in line
