"""Tokenizers that are missing, damaged, or need a package."""

import pytest
import transformers
from transformers.utils import import_utils

from fmerge.errors import UserError
from fmerge.store import find_tokenizer, load_tokenizer
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(tiny.bert_config().to_json_string())
    return tmp_path


def test_a_folder_without_tokenizer_has_none(folder):
    assert find_tokenizer(str(folder)) is None
    with pytest.raises(UserError, match="holds no tokenizer, such as tokenizer.json"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_tokenizer_is_not_a_missing_one(folder, damage):
    tiny.tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(damage)
    (folder / "tokenizer.model").write_bytes(b"beside it")
    with pytest.raises(UserError, match="cannot read its tokenizer"):
        find_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("deberta-v2", "spm.model"),
        ("t5", "spiece.model"),
        ("xlm-roberta", "sentencepiece.bpe.model"),
        ("llama", "tokenizer.model"),
        ("marian", "source.spm"),
    ],
)
def test_a_sentencepiece_tokenizer_names_its_packages(folder, monkeypatch, kind, name):
    monkeypatch.setattr(import_utils, "is_sentencepiece_available", lambda: False)
    (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    (folder / name).write_bytes(bytes(range(64)))
    with pytest.raises(UserError) as refused:
        load_tokenizer(str(folder))
    assert str(refused.value) == (
        f"{folder}: its tokenizer is of SentencePiece ({name}), which needs the packages "
        "sentencepiece and protobuf; run: pip install 'fmerge[sentencepiece]', or: "
        "pip install sentencepiece protobuf"
    )


def test_a_file_that_is_no_sentencepiece_model_is_said(folder, monkeypatch):
    for name in ("is_sentencepiece_available", "is_protobuf_available"):
        monkeypatch.setattr(import_utils, name, lambda: True)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    (folder / "spiece.model").write_bytes(bytes(range(64)))
    with pytest.raises(UserError, match=r"\(spiece.model\), but that file holds none; get it"):
        load_tokenizer(str(folder))


def test_a_tiktoken_tokenizer_names_its_package(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tiktoken.model").write_bytes(b"YQ== 0\n")
    with pytest.raises(UserError, match="is one of tiktoken; run: pip install tiktoken"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("deberta-v2", "spm.model"), ("t5", "spiece.model"), ("xlnet", "spiece.model")],
)
def test_sentencepiece_models_are_read_where_the_package_is(folder, kind, name):
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    (folder / "words.txt").write_text("\n".join(20 * tiny.WORDS))
    trainer.train(
        input=str(folder / "words.txt"), model_prefix=str(folder / "m"), vocab_size=40,
        hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    (folder / "m.model").rename(folder / name)
    (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    read = load_tokenizer(str(folder))
    assert read.decode(read("red cat")["input_ids"], skip_special_tokens=True) == "red cat"
    read.save_pretrained(folder / "saved")
    again = transformers.AutoTokenizer.from_pretrained(folder / "saved")
    assert again("red cat")["input_ids"] == read("red cat")["input_ids"]
