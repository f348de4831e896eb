"""The files of an adapter: what its config says, and what each tensor is called."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from fmerge.store import SavedAdapter, load_classifier
from fmerge.store.adapter_saving import save_adapter
from tests import tiny

LAYER = "bert.encoder.layer.0"
QUERY, KEY = (f"{LAYER}.attention.self.{name}.weight" for name in ("query", "key"))
WORDS = "bert.embeddings.word_embeddings.weight"


def factors(rank, rows, columns):
    torch.manual_seed(rank)
    return 0.1 * torch.randn(rows, rank), torch.randn(rank, columns)


@pytest.fixture
def saved(tmp_path):
    """A base, the model that an adapter makes of it, and the folder of the adapter."""
    base = tiny.classifier(tiny.bert_config(num_hidden_layers=1), seed=1)
    path = tiny.save(base, tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(path)
    made = {QUERY: factors(2, 16, 16), KEY: factors(2, 16, 16), WORDS: factors(3, 16, 18)}
    whole = [f"{LAYER}.output.LayerNorm.weight", f"{LAYER}.output.dense.bias", QUERY[:-6] + "bias"]
    with torch.no_grad():
        for name, (b, a) in made.items():
            model.get_parameter(name).add_((b @ a).T if name == WORDS else b @ a)
        for name in [*whole, "classifier.bias"]:
            model.get_parameter(name).add_(1.0)
    body = [name for name, _ in model.bert.named_parameters(prefix="bert")]
    save_adapter(tmp_path / "out", model, SavedAdapter(path, "hash", made, whole, body))
    return model, tmp_path / "out"


def test_the_config_and_the_names(saved):
    _, folder = saved
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (2, 2, "all")
    words = WORDS.removesuffix(".weight")
    assert config["rank_pattern"] == config["alpha_pattern"] == {words: 3}
    assert config["target_modules"] == sorted(
        n.removesuffix(".weight") for n in (QUERY, KEY, WORDS)
    )
    assert config["modules_to_save"] == ["classifier", f"{LAYER}.output.LayerNorm"]
    assert config["task_type"] == "SEQ_CLS" and config["fan_in_fan_out"] is False
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = {name.removeprefix("base_model.model.") for name in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["labels"]) == ["a", "b", "c"]
        assert file.metadata()["base_sha256"] == "hash"
    projections = {QUERY, KEY}
    expected = {n.replace("weight", f"lora_{f}.weight") for n in projections for f in "AB"}
    expected |= {f"{words}.lora_embedding_{factor}" for factor in "AB"}
    expected |= {f"{LAYER}.output.LayerNorm.{part}" for part in ("weight", "bias")}
    expected |= {"classifier.weight", "classifier.bias", f"{LAYER}.output.dense.bias"}
    assert names == expected | {QUERY.replace("weight", "base_layer.bias")}


def test_it_is_read_as_the_model_that_was_saved(saved, monkeypatch):
    model, folder = saved
    # the made-up hash is none of the base's
    monkeypatch.setattr("fmerge.store.adapter_weights._joined", lambda digests: "hash")
    found = load_classifier(str(folder), "x").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
