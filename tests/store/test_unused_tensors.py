"""Tensors that a model's class does not run are refused, but for a few that nothing needs."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

from fmerge.errors import UserError
from fmerge.store import load_classifier, load_language_model, reading_headers
from fmerge.store.unused_tensors import HARMLESS
from tests import tiny


def saved(model, folder, **tensors):
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, {"format": "pt"})
    return str(folder)


def some(*names, shape=(4, 16)):
    return {name: torch.ones(shape) for name in names}


LAYER = "bert.encoder.layer.0"
EXPERT = BertForSequenceClassification(tiny.bert_config())


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([f"{LAYER}.output.adapter.weight"], "holds tensor '.*adapter.weight', .* of an adapter"),
        ([f"{LAYER}.attention.self.query.lora_A.weight"], "does not use; it is of an adapter"),
        ([f"{LAYER}.attention.self.query.SCB"], "does not use; it is of a quantized model"),
        ([f"{LAYER}.output.gate"], "does not use; give the model as its own class saves it"),
        (["classifier.dense.weight"], "holds tensor 'classifier.dense.weight', which BertForSeq"),
        (["qa_outputs.weight"], "holds tensor 'qa_outputs.weight'"),
        (["encoder2.weight"], "holds tensor 'encoder2.weight'"),
        (list("abcde"), "holds tensors 'a', 'b', 'c' and 2 more, which BertForSequenceClass"),
    ],
)
@pytest.mark.parametrize("headers", [False, True])
def test_of_an_expert(tmp_path, names, says, headers):
    folder = saved(EXPERT, tmp_path / "x", **some(*names))
    with pytest.raises(UserError, match=says):
        if headers:
            with reading_headers():
                load_classifier(folder, "x")
        else:
            load_classifier(folder, "x")


@pytest.mark.parametrize(
    "names",
    [
        ["bert.embeddings.position_ids", "embeddings.token_type_ids"],
        ["cls.predictions.bias", "cls.seq_relationship.weight"],
        ["lm_head.dense.weight", "vocab_projector.bias", "discriminator_predictions.dense.bias"],
    ],
)
def test_what_nothing_needs(tmp_path, names):
    folder = saved(EXPERT, tmp_path / "x", **some(*names))
    found = load_classifier(folder, "x").state_dict()
    for name, tensor in EXPERT.state_dict().items():
        assert found[name].equal(tensor)


def test_of_a_base_any_head_may_be_left_out_but_nothing_of_the_body(tmp_path):
    whole = saved(EXPERT, tmp_path / "a", **some("qa_outputs.weight", "dense.scale"))
    load_classifier(whole, "x", ["p", "q"], fresh_head=True)
    body = saved(BertModel(tiny.bert_config()), tmp_path / "b", **some("qa_outputs.weight"))
    load_classifier(body, "x", fresh_head=True)
    names = {
        "a": f"{LAYER}.adapter.x",
        "b": "encoder.layer.0.adapter.x",
    }  # with the prefix, without
    for folder, name in names.items():
        path = tmp_path / folder / "model.safetensors"
        save_file(load_file(path) | some(name), path, {"format": "pt"})
        with pytest.raises(UserError, match=f"holds tensor '{name}'"):
            load_classifier(str(tmp_path / folder), "x", fresh_head=True)


def test_a_pooler_that_the_head_does_not_read(tmp_path):
    folder = saved(BertForPreTraining(tiny.bert_config()), tmp_path / "x")
    assert (
        "pooler.dense.weight"
        not in load_classifier(
            folder, "x", head="question answering", fresh_head=True
        ).base_model.state_dict()
    )


@pytest.mark.parametrize(
    ("model", "harmless", "refused"),
    [
        (
            LlamaForCausalLM(tiny.llama_config()),
            {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)},
            "model.layers.0.self_attn.q_proj.lora_B.weight",
        ),
        (
            GPT2LMHeadModel(tiny.gpt2_config()),
            {
                "transformer.h.0.attn.bias": torch.ones(1, 1, 24, 24),
                "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
            },
            "v_head.summary.weight",
        ),
        (T5ForConditionalGeneration(tiny.t5_config()), {}, "decoder.block.0.adapter.weight"),
    ],
)
def test_of_language_models(tmp_path, model, harmless, refused):
    load_language_model(saved(model, tmp_path / "good", **harmless))
    with pytest.raises(UserError, match=f"holds tensor '{refused}', which {type(model).__name__}"):
        load_language_model(saved(model, tmp_path / "bad", **harmless, **some(refused)))


def test_of_a_lightning_checkpoint(tmp_path):
    shutil.copytree(saved(EXPERT, tmp_path / "base"), tmp_path / "again")
    names = {f"models.x.{k}": v for k, v in (EXPERT.state_dict() | some("bert.adapter")).items()}
    hyper = {"path": str(tmp_path / "base"), "tasks": {"x": list("abc")}}
    torch.save({"state_dict": names, "hyper_parameters": hyper}, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="best.ckpt: holds tensor 'bert.adapter', which BertForSeq"):
        load_classifier(str(tmp_path / "best.ckpt"), "x")


def test_a_head_of_another_size_names_both_shapes(tmp_path):
    folder = saved(EXPERT, tmp_path / "x", **some("classifier.weight", shape=(5, 16)))
    with pytest.raises(UserError, match=r"'classifier.weight' is \(5, 16\) where its config says"):
        load_classifier(folder, "x")


@pytest.mark.parametrize("pattern", HARMLESS.values())
def test_the_list_names_no_layer_of_a_body(pattern):
    for model in (EXPERT, LlamaForCausalLM(tiny.llama_config())):
        body = [name for name, _ in model.base_model.named_parameters() if "pooler" not in name]
        assert not any(re.search(pattern, name) for name in body)
