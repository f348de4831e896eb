"""A tokenizer's ids have embeddings, and both it and its model have one padding token."""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, CanineConfig

from fmerge.errors import UserError
from fmerge.store import check_tokenizer, give_padding
from tests import tiny
from tests.merging.small_models import Network

ROWS = len(tiny.WORDS) + 2


def small(rows=ROWS):
    return tiny.classifier(tiny.bert_config(vocab_size=rows))


def causal(**options):
    config = tiny.gpt2_config()
    config.update({"pad_token_id": None} | options)
    return tiny.classifier(config)


def added(*tokens):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def test_ids_with_embeddings_are_taken():
    check_tokenizer(small(), tiny.tokenizer(), "here")
    check_tokenizer(small(ROWS + 5), added("new"), "here")
    check_tokenizer(Network(1), added("new"), "here")  # embeds nothing
    hashing = CanineConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        num_hash_buckets=8, num_hash_functions=2, max_position_embeddings=16,
    )  # fmt: skip
    check_tokenizer(tiny.classifier(hashing), tiny.tokenizer(), "here")


@pytest.mark.parametrize(
    ("model", "tokenizer", "token", "more"),
    [
        (small(), added("new"), f"'new' the id {ROWS}", ""),
        (small(), added("new", "newer"), f"'new' the id {ROWS}", ", and 1 more tokens"),
        (small(ROWS - 1), tiny.tokenizer(), f"'four' the id {ROWS - 1}", ""),
        (AutoModelForCausalLM.from_config(tiny.gpt2_config()), added("a", "b", "c"), "'c' the", ""),
        (AutoModelForSeq2SeqLM.from_config(tiny.t5_config()), added("a", "b", "c"), "'c' the", ""),
    ],
)
def test_tokens_without_embeddings_are_refused(model, tokenizer, token, more):
    with pytest.raises(UserError) as refused:
        check_tokenizer(model, tokenizer, "here")
    assert f"here: its tokenizer gives the token {token}" in str(refused.value)
    assert more in str(refused.value) and "resize_token_embeddings" in str(refused.value)


def test_an_id_that_the_post_processor_adds_is_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 99)]
    )
    with pytest.raises(UserError, match="'of the post-processor' the id 99, but its model has"):
        check_tokenizer(small(), tokenizer, "here")


def without_padding(**options):
    tokenizer = tiny.text_tokenizer(**options)
    tokenizer.pad_token = None
    return tokenizer


@pytest.mark.parametrize("own", [None, -1, 99])
def test_the_tokenizers_padding_is_the_models_where_that_has_none(own):
    model = causal(pad_token_id=own)
    give_padding(model, tiny.text_tokenizer(), "here")
    assert model.config.pad_token_id == 0


def test_the_models_padding_is_the_tokenizers_where_that_has_none():
    model, tokenizer = causal(pad_token_id=1), without_padding()
    give_padding(model, tokenizer, "here")
    assert (model.config.pad_token_id, tokenizer.pad_token) == (1, "[UNK]")


def test_both_keep_what_they_have():
    model, tokenizer = causal(pad_token_id=3), tiny.text_tokenizer()
    give_padding(model, tokenizer, "here")
    assert (model.config.pad_token_id, tokenizer.pad_token_id) == (3, 0)


def test_the_end_of_a_sequence_serves_where_it_ends_no_text(caplog):
    model, tokenizer = causal(), without_padding(template="$A")
    give_padding(model, tokenizer, "here")
    assert (model.config.pad_token_id, tokenizer.pad_token) == (2, "[EOS]")
    assert caplog.messages == ["here: has no padding token; '[EOS]' is taken for it"]


def test_no_padding_at_all_is_refused_where_it_is_needed():
    model, tokenizer = causal(), without_padding()  # each text ends with the end of a sequence
    with pytest.raises(UserError, match=r"here: neither its config.json \(pad_token_id\) nor its"):
        give_padding(model, tokenizer, "here")
    give_padding(model, tokenizer, "here", needed=False)
    assert model.config.pad_token_id is None and tokenizer.pad_token is None
