"""Adapters as experts: equal to what peft merges into the base, kind by kind."""

import pytest
import torch
from peft import PeftModel  # noqa: F401  # conftest leaves this file out where peft is missing
from torch import nn
from transformers import GPT2LMHeadModel, ViTConfig, ViTForImageClassification

from fmerge.errors import UserError
from fmerge.methods.low_rank import nearest_factors
from fmerge.store import (
    SavedAdapter,
    load_classifier,
    load_language_model,
    read_adapter,
    reading_headers,
)
from fmerge.store.adapter_saving import save_adapter
from fmerge.store.adapter_weights import apply_adapter, merged_weight, outputs_last
from fmerge.store.adapters import as_adapted
from fmerge.store.module_kinds import class_path_of
from tests import tiny
from tests.adapters import CAUSAL, causal_base, make_adapter, opened, read

CASES = {
    "plain": {"r": 2, "target_modules": ["query", "value"]},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["dense"]},
    "patterns": {
        "r": 2, "target_modules": ["query", "key"], "lora_alpha": 5,
        "rank_pattern": {"layer.0.attention.self.query": 3}, "alpha_pattern": {"key": 1},
    },
    "bias all": {"r": 2, "target_modules": ["query"], "bias": "all"},
    "bias lora_only": {"r": 2, "target_modules": ["query"], "bias": "lora_only"},
    "lora_bias": {"r": 2, "target_modules": ["query"], "lora_bias": True, "lora_alpha": 3},
    "modules_to_save": {"r": 2, "target_modules": ["query"], "modules_to_save": ["LayerNorm"]},
    "embedding": {"r": 2, "target_modules": ["word_embeddings", "query"]},
    "dora": {"r": 2, "target_modules": ["query", "word_embeddings"], "use_dora": True},
    "eva": {"r": 2, "target_modules": ["query"], "init_lora_weights": "gaussian"},
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    base = tiny.classifier(tiny.bert_config(num_hidden_layers=1), seed=1)
    return tiny.save(base, tmp_path_factory.mktemp("base"))


def assert_same(found, expected, rtol=1e-5):
    own, wanted = found.state_dict(), expected.state_dict()
    assert own.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(own[name], tensor, rtol=rtol, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_classifier_is_what_peft_merges(bert, tmp_path, case):
    wanted = make_adapter(bert, tmp_path, task_type="SEQ_CLS", **CASES[case])
    assert_same(load_classifier(str(tmp_path), "x"), wanted)


def test_heads_of_other_labels_than_the_base(bert, tmp_path):
    two = {"num_labels": 2, "ignore_mismatched_sizes": True}
    wanted = make_adapter(bert, tmp_path, options=two, task_type="SEQ_CLS", r=2)
    found = load_classifier(str(tmp_path), "x", ["yes", "no"])
    assert found.config.id2label == {0: "yes", 1: "no"}
    assert_same(found, wanted)
    with pytest.raises(UserError, match="its labels are .'LABEL_0', 'LABEL_1'., but the task's"):
        load_classifier(str(tmp_path), "x", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("task", "kind", "head", "module"),
    [
        ("TOKEN_CLS", "AutoModelForTokenClassification", "token classification", "TokenClassifier"),
        ("QUESTION_ANS", "AutoModelForQuestionAnswering", "question answering", "SpanAnswers"),
    ],
)
def test_the_task_of_an_adapter_tells_its_class(bert, tmp_path, task, kind, head, module):
    wanted = make_adapter(bert, tmp_path, kind=kind, task_type=task, r=2, target_modules=["key"])
    assert class_path_of(str(tmp_path)) == f"fmerge.modules.{module}"
    assert_same(load_classifier(str(tmp_path), "x", head=head), wanted)


def test_headers_alone_are_checked_without_numbers(bert, tmp_path):
    make_adapter(bert, tmp_path, task_type="SEQ_CLS", r=2, target_modules=["query"])
    with reading_headers():
        found = load_classifier(str(tmp_path), "x")
    assert all(not one.any() for one in found.parameters())


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        (tiny.gpt2_config(), {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        (tiny.gpt2_config(), {"target_modules": ["c_attn"], "use_dora": True}),
        (tiny.llama_config(), {"target_modules": "all-linear"}),
    ],
)
def test_a_language_model_is_what_peft_merges(tmp_path, config, lora):
    base = causal_base(tmp_path / "base", config)
    wanted = make_adapter(base, tmp_path / "a", kind=CAUSAL, task_type="CAUSAL_LM", r=2, **lora)
    found = load_language_model(str(tmp_path / "a"))
    assert_same(found, wanted)
    ids = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(found(ids).logits, wanted(ids).logits, rtol=1e-5, atol=1e-5)


def tied_llama(tmp_path):
    config = tiny.llama_config()
    config.tie_word_embeddings = True
    return causal_base(tmp_path / "base", config)


def test_tied_weights_that_are_changed_together(tmp_path):
    base, folder = tied_llama(tmp_path), tmp_path / "a"
    lora = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    make_adapter(base, folder, kind=CAUSAL, task_type="CAUSAL_LM", r=2, **lora)
    found, origin = load_language_model(str(folder)), load_language_model(base)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert (found.lm_head.weight - origin.lm_head.weight).abs().max() > 0.01


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_one_of_two_tied_weights_is_refused(tmp_path, lora):
    base, folder = tied_llama(tmp_path), tmp_path / "a"
    make_adapter(base, folder, kind=CAUSAL, task_type="CAUSAL_LM", r=2, **lora)
    for headers in (False, True):
        with pytest.raises(UserError, match="changes '.*', but not in the same way '.*', which is"):
            if headers:
                with reading_headers():
                    load_language_model(str(folder))
            load_language_model(str(folder))


def test_an_adapter_of_a_convolution_is_read_and_written(tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=4, patch_size=2, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    lora = {"target_modules": ["projection"], "modules_to_save": ["classifier"]}
    kind = "AutoModelForImageClassification"
    wanted = make_adapter(tmp_path / "base", tmp_path / "a", kind=kind, r=2, **lora)
    found, origin = read(kind, tmp_path / "base"), read(kind, tmp_path / "base")
    adapter = read_adapter(tmp_path / "a")
    config = as_adapted(found.config, adapter)
    assert config.architectures == ["ViTForImageClassification"] and config.num_labels == 2
    given = apply_adapter(adapter, found, "a")
    assert given == {"classifier.weight", "classifier.bias"}
    assert_same(found, wanted)
    name = "vit.embeddings.patch_embeddings.projection.weight"
    change = (found.get_parameter(name) - origin.get_parameter(name)).detach().double()
    b, a, _ = nearest_factors(change.flatten(1), 2, 1e-6)
    body = [n for n in found.state_dict() if not n.startswith("classifier")]
    saved = SavedAdapter(str(tmp_path / "base"), "", {name: (b.float(), a.float())}, [], body)
    save_adapter(tmp_path / "b", found, saved)
    assert_same(opened(tmp_path / "b", kind), found)


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [(nn.Conv2d(3, 4, 1), (1, 1)), (nn.Conv2d(3, 4, (2, 3)), (2, 3)), (nn.Conv1d(3, 4, 2), (2,))],
)
def test_kernels_of_convolutions(layer, kernel):
    torch.manual_seed(0)
    factors = {"A": torch.randn(2, 3, *kernel), "B": torch.randn(4, 2, *[1] * len(kernel))}
    assert outputs_last(layer) is False
    merged = merged_weight(layer.weight, factors, 0.5, False)
    one = [0] * len(kernel)
    for o in range(4):
        for i in range(3):
            change = sum(factors["B"][(o, r, *one)] * factors["A"][r, i] for r in range(2))
            torch.testing.assert_close(merged[o, i], layer.weight[o, i] + 0.5 * change)


def test_which_modules_have_a_known_change():
    assert outputs_last(nn.Linear(2, 3)) is False
    assert outputs_last(nn.Embedding(2, 3)) is True
    assert outputs_last(GPT2LMHeadModel(tiny.gpt2_config()).transformer.h[0].attn.c_attn) is True
    assert outputs_last(nn.Conv2d(4, 4, 1, groups=2)) is None
    assert outputs_last(nn.LayerNorm(2)) is None
    assert outputs_last(None) is None
