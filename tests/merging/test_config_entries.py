"""Configs are compared by all their entries, but a list of those that may differ."""

import pytest
from torch import nn
from transformers import (
    BertConfig,
    LlamaConfig,
    MobileBertConfig,
    Qwen2Config,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
)

from fmerge.errors import UserError
from fmerge.merging.compatibility import check_same_function
from fmerge.merging.config_entries import HARMLESS, function_entries
from tests import tiny
from tests.cli.limits_table import LIMITS


def model(config):
    made = nn.Linear(1, 1)
    made.config = config
    return made


def compare(one, other):
    check_same_function(model(one), model(other), "the base x", "y")


ROPE = {"rope_theta": 1e4, "rope_type": "default"}
YARN = {**ROPE, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "one", "other", "entry"),
    [
        (BertConfig, {}, {"add_cross_attention": True}, "add_cross_attention True"),
        (BertConfig, {}, {"my_own_switch": 2}, "my_own_switch 2"),
        (BertConfig, {"mine": {"a": {"b": 1}}}, {"mine": {"a": {"b": 2}}}, "mine.a.b 2"),
        (T5Config, {}, {"scale_decoder_outputs": False}, "scale_decoder_outputs False"),
        (LlamaConfig, {}, {"attention_bias": True}, "attention_bias True"),
        (
            LlamaConfig,
            {"rope_parameters": ROPE},
            {"rope_parameters": {**ROPE, "rope_theta": 5e5}},
            "rope_parameters.rope_theta 500000.0",
        ),
        (LlamaConfig, {"rope_parameters": ROPE}, {"rope_parameters": YARN}, "rope_parameters.rope"),
        (
            LlamaConfig,
            {"rope_parameters": YARN, "max_position_embeddings": 128},
            {"rope_parameters": YARN, "max_position_embeddings": 256},
            "max_position_embeddings 256",
        ),
        # of this family the pooler, which is merged, reads it
        (MobileBertConfig, {}, {"classifier_activation": False}, "classifier_activation False"),
    ],
)
def test_an_entry_that_differs_is_named(kind, one, other, entry):
    with pytest.raises(UserError, match=f"y: its config says {entry}.*, but the base x says"):
        compare(kind(**one), kind(**other))
    compare(kind(**other), kind(**other))


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (BertConfig, {}, {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2}),
        (BertConfig, {}, {"num_labels": 5, "problem_type": "regression", "architectures": ["A"]}),
        (BertConfig, {}, {"use_cache": False, "dtype": "bfloat16", "initializer_range": 0.1}),
        (BertConfig, {}, {"unused": False, "nothing": None}),  # as if absent
        (BertConfig, {"sizes": (1, 2)}, {"sizes": [1, 2]}),  # a file has no tuples
        (LlamaConfig, {"eos_token_id": 1}, {"eos_token_id": [1, 2], "pad_token_id": 3}),
        (Qwen2Config, {"max_position_embeddings": 131072}, {"max_position_embeddings": 32768}),
        (T5Config, {}, {"task_specific_params": {"a": {"prefix": "p"}}, "num_beams": 4}),
        (LlamaConfig, {}, {"unsloth_version": "2024.8", "pretraining_tp": 2}),
    ],
)
def test_what_may_differ(kind, one, other):
    compare(kind(**one), kind(**other))


def test_padding_counts_where_positions_are_counted_from_it():
    small = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    one, other = (
        RobertaForSequenceClassification(
            RobertaConfig(**small, intermediate_size=4, pad_token_id=padding)
        )
        for padding in (1, 2)
    )
    with pytest.raises(UserError, match="its config says pad_token_id 2, but x says 1"):
        check_same_function(one, other, "x", "y")
    compare(tiny.gpt2_config(), tiny.gpt2_config())


def test_what_is_left_of_a_config():
    found = function_entries(tiny.bert_config().to_dict())
    assert set(found) == {
        *("is_encoder_decoder", "vocab_size", "hidden_size", "num_hidden_layers", "hidden_act"),
        *("num_attention_heads", "intermediate_size", "type_vocab_size", "layer_norm_eps"),
        *("is_decoder", "add_cross_attention", "tie_word_embeddings", "model_type"),
    }


def test_the_page_of_limits_has_the_whole_list():
    page = LIMITS.read_text(encoding="utf-8")
    for what in HARMLESS:
        assert f"- {what}:" in page
