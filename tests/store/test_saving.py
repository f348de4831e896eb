"""Models written in the form of others: dtypes, shards, generation configs, ties."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from fmerge.errors import UserError
from fmerge.store.params_file import load_params
from fmerge.store.saved_form import SavedForm
from fmerge.store.saving import save_models
from tests import tiny

BF16, F32 = torch.bfloat16, torch.float32


def saved(tmp_path, model, form):
    save_models(tmp_path / "out", {"": model}, tiny.tokenizer(), forms={"": form})
    return load_params(tmp_path / "out"), json.loads((tmp_path / "out/config.json").read_text())


def test_every_tensor_is_rounded_and_the_live_model_is_not(tmp_path):
    model = tiny.classifier(tiny.bert_config())
    before = {name: one.clone() for name, one in model.named_parameters()}
    found, config = saved(tmp_path, model, SavedForm(dict.fromkeys(before, BF16)))
    assert config["dtype"] == "bfloat16"
    for name, one in model.named_parameters():
        assert torch.equal(one, before[name])
        assert found[name].dtype == BF16 and torch.equal(found[name], before[name].bfloat16())


def test_mixed_dtypes_are_kept_and_the_config_names_the_commonest(tmp_path):
    model = tiny.classifier(tiny.bert_config())
    names = [name for name, _ in model.named_parameters()]
    dtypes = {name: F32 if "LayerNorm" in name or "word" in name else BF16 for name in names}
    found, config = saved(tmp_path, model, SavedForm(dtypes))
    assert {name: one.dtype for name, one in found.items()} == dtypes
    assert config["dtype"] == "bfloat16"  # not that of the first tensor, the word embeddings


def test_ties_are_kept(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny.gpt2_config())
    found, _ = saved(tmp_path, model, SavedForm({"transformer.wte.weight": BF16}))
    assert "lm_head.weight" not in found and found["transformer.wte.weight"].dtype == BF16
    assert model.lm_head.weight is model.transformer.wte.weight


def test_shards(tmp_path):
    model = tiny.classifier(tiny.bert_config())
    found, _ = saved(tmp_path, model, SavedForm(shard_bytes=5_000))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1 and set(found) == set(index["weight_map"])
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert path.stat().st_size < 5_000 + 2_000  # and its header


@pytest.mark.parametrize("extra", [{}, {"temperature": 0.5}, {"own_entry": [1, 2]}])
def test_the_generation_config_is_the_files_own(tmp_path, extra):
    # a temperature without do_sample is read by transformers, but never written
    torch.manual_seed(0)
    GPT2LMHeadModel(tiny.gpt2_config()).save_pretrained(tmp_path / "expert")
    path = tmp_path / "expert" / "generation_config.json"
    text = json.dumps(json.loads(path.read_text()) | {"max_new_tokens": 7} | extra, indent=3)
    path.write_text(text)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "expert")
    saved(tmp_path, model, SavedForm(folder=tmp_path / "expert"))
    assert (tmp_path / "out/generation_config.json").read_text() == text
    assert model.generation_config.max_new_tokens == 7


def test_numbers_beyond_the_dtype_are_refused_and_nothing_is_written(tmp_path):
    model = tiny.classifier(tiny.bert_config())
    with torch.no_grad():
        model.classifier.bias.fill_(1e5)
    half = SavedForm({name: torch.float16 for name, _ in model.named_parameters()})
    with pytest.raises(UserError, match=r"'classifier.bias' .* beyond the range of torch.float16"):
        saved(tmp_path, model, half)
    assert not (tmp_path / "out").exists() and model.classifier.bias.dtype == F32
