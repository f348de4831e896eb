"""Tokenizers compared as a whole, and saved as they were read."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from fmerge.store import load_tokenizer, tokenizer_differences, vocabulary_difference
from fmerge.store.tokenizer_parts import save_tokenizer
from tests import tiny


def changed(change=lambda backend: None, **options):
    made = tiny.tokenizer()
    change(made.backend_tokenizer)
    settings = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 32}
    return PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, **settings | options)


def setting(name, value):
    return lambda backend: setattr(backend, name, value)


ENDS = processors.TemplateProcessing(single="$A [PAD]", special_tokens=[("[PAD]", 0)])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (changed(), []),
        (changed(setting("normalizer", normalizers.Lowercase())), ["normalizer"]),
        (changed(setting("normalizer", normalizers.StripAccents())), ["normalizer"]),
        (changed(setting("pre_tokenizer", pre_tokenizers.WhitespaceSplit())), ["pre_tokenizer"]),
        (changed(setting("post_processor", ENDS)), ["post_processor"]),
        (changed(padding_side="left"), ["padding_side"]),
        (changed(truncation_side="left"), ["truncation_side"]),
        (changed(model_max_length=512), ["model_max_length"]),
        (changed(chat_template="{{ messages }}"), ["chat_template"]),
        (changed(eos_token="red"), ["added_tokens", "special_tokens_map"]),
        (changed(padding_side="left", model_max_length=8), ["padding_side", "model_max_length"]),
    ],
)
def test_every_step_and_setting_is_compared(other, expected):
    assert tokenizer_differences(tiny.tokenizer(), other) == expected
    assert vocabulary_difference(tiny.tokenizer(), other) == []


def test_merges_are_compared_beside_the_vocabulary():
    vocabulary = {token: i for i, token in enumerate(["a", "b", "c", "ab", "bc"])}
    first, second = (
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, merges)))
        for merges in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")])
    )
    assert first("abc")["input_ids"] != second("abc")["input_ids"]
    assert tokenizer_differences(first, second) == ["model"]
    assert vocabulary_difference(first, second) == []


def test_tokens_of_other_ids_are_named():
    other = tiny.text_tokenizer()
    found = vocabulary_difference(tiny.tokenizer(), other)
    assert found == sorted(["[EOS]", "[BOS]", *tiny.WORDS])
    assert "vocabulary" in tokenizer_differences(tiny.tokenizer(), other)


def test_tokenizers_in_python_are_compared_by_their_arguments():
    assert tokenizer_differences(ByT5Tokenizer(), ByT5Tokenizer()) == []
    other = ByT5Tokenizer(extra_ids=7)
    assert "vocabulary" in tokenizer_differences(ByT5Tokenizer(), other)
    other = ByT5Tokenizer(additional_special_tokens=["<extra_id_0>"], extra_ids=0)
    assert "extra_special_tokens" in tokenizer_differences(ByT5Tokenizer(), other)


def test_a_call_changes_neither_the_comparison_nor_what_is_saved(tmp_path):
    used = tiny.tokenizer()
    used(["red cat", "blue"], padding=True, truncation=True, max_length=5)
    assert tokenizer_differences(tiny.tokenizer(), used) == []
    before = used.backend_tokenizer.truncation
    save_tokenizer(used, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None
    assert used.backend_tokenizer.truncation == before


def test_truncation_of_the_file_is_kept(tmp_path):
    made = tiny.tokenizer()
    made.backend_tokenizer.enable_truncation(7)
    made.backend_tokenizer.enable_padding(length=7)
    made.save_pretrained(tmp_path / "own")
    read = load_tokenizer(str(write_config(tmp_path / "own")))
    read(["red cat", "blue"], padding=True, truncation=True, max_length=5)
    save_tokenizer(read, tmp_path / "saved")
    own, saved = (
        json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("own", "saved")
    )
    assert own == saved and saved["truncation"]["max_length"] == 7


def write_config(folder):
    (folder / "config.json").write_text(tiny.bert_config().to_json_string())
    return folder
