"""How long an input may be, and how many are counted as truncated."""

from types import SimpleNamespace

import pytest
from transformers import (
    AutoConfig,
    BartConfig,
    BartForConditionalGeneration,
    IBertConfig,
    IBertModel,
    RobertaConfig,
    RobertaModel,
)

from fmerge.modules.truncation import TruncationCounter, max_input_length, position_count
from tests import tiny


def tokenizer(limit):
    return SimpleNamespace(model_max_length=limit)


def words(text, pair=None, verbose=True):
    """A tokenizer of words, with one token between the texts of a pair."""
    return {"input_ids": text.split() + (["[SEP]", *pair.split()] if pair else [])}


def network(positions):
    model = tiny.classifier(tiny.bert_config(max_position_embeddings=positions))
    return model


@pytest.mark.parametrize(
    ("asked", "of_tokenizer", "positions", "expected"),
    [(10, 20, 30, 10), (40, 20, 30, 20), (40, 50, 30, 30)],
)
def test_the_smallest_limit_holds(asked, of_tokenizer, positions, expected):
    models = [network(positions), network(positions + 5)]
    assert max_input_length(asked, tokenizer(of_tokenizer), models) == expected
    assert max_input_length(asked, tokenizer(of_tokenizer), []) == min(asked, of_tokenizer)


def test_positions_of_roberta_begin_behind_its_padding():
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
             "intermediate_size": 8, "vocab_size": 9}  # fmt: skip
    config = RobertaConfig(max_position_embeddings=34, pad_token_id=1, **small)
    assert position_count(RobertaModel(config)) == 32
    assert position_count(network(32)) == 32
    assert position_count(SimpleNamespace(config=object(), named_modules=lambda: [])) is None


def test_positions_of_an_encoder_decoder():
    config = BartConfig(
        d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, vocab_size=9,
        max_position_embeddings=16, pad_token_id=1,
    )  # fmt: skip
    assert position_count(BartForConditionalGeneration(config)) == 16


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("xlnet", {"d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8}, None),  # says -1
        ("t5", {"d_model": 8, "num_layers": 1, "num_heads": 1, "d_ff": 8, "d_kv": 8}, None),
        ("bloom", {"hidden_size": 8, "n_layer": 1, "n_head": 1}, None),
        ("bert", {"max_position_embeddings": 0}, None),
        ("gpt2", {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 12}, 12),
        ("led", {"max_encoder_position_embeddings": 20}, 20),
        ("ibert", {"max_position_embeddings": 34, "pad_token_id": 1}, 32),
    ],
)
def test_positions_of_other_families(kind, options, expected):
    """A model without a number of positions, or with one below 1, sets no limit."""
    config = AutoConfig.for_model(kind)
    config.update(options)
    modules = []
    if kind == "ibert":
        table = IBertModel(
            IBertConfig(
                **options,
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                intermediate_size=8,
                vocab_size=9,
            )
        )
        modules = list(table.named_modules())  # fmt: skip
    model = SimpleNamespace(config=config, named_modules=lambda: modules)
    assert position_count(model) == expected
    limit = 10 if expected is None else min(10, expected)
    assert max_input_length(10, tokenizer(-1), [model]) == limit


def test_truncated_inputs_are_counted_by_task_and_told_once(caplog):
    counter = TruncationCounter()
    texts = [["one two"], ["one two three"], ["one two three four"], ["one", "two three"]]
    counter.count(words, texts, [2, 3, 3, 3], [3, 3, 3, 3], "a")
    # three words are exactly the limit, four words and a pair of 1 + 1 + 2 tokens are too many
    assert counter.truncated["a"] == 2 and counter.seen["a"] == 4
    assert [record.getMessage() for record in caplog.records] == [
        "task 'a': 2 of the first 4 prompts are longer than 3 tokens and were cut; later ones are "
        "cut silently"
    ]
    counter.count(words, texts, [2, 3, 3, 3], [3, 3, 3, 3], "a")
    counter.count(words, texts[:1], [2], [3], "b")
    assert counter.truncated == {"a": 4, "b": 0} and counter.seen == {"a": 8, "b": 1}
    assert len(caplog.records) == 1
    counter.count(words, texts[:1], [1], [1], "b")  # each input may have a limit of its own
    assert counter.truncated["b"] == 1 and len(caplog.records) == 2
