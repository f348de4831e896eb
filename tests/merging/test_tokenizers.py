"""The tokenizers of a merge: one vocabulary, and each task's own where they differ otherwise."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from fmerge.errors import UserError
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import load_ensemble
from fmerge.methods import Average
from fmerge.modules import RankChoice, TextClassifier
from tests import tiny
from tests.merging.whole_merges import merge, near, save, task


def lower(**options):
    made = tiny.tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    return with_settings(made, **options)


def with_settings(made, **options):
    settings = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 32} | options
    return PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, **settings)


def folders(root, *tokenizers):
    base = tiny.classifier(tiny.bert_config(), seed=1)
    saved = {}
    for k, (name, one) in enumerate(zip("xyz", tokenizers, strict=False)):
        model = near(tiny.classifier(tiny.bert_config(), seed=5 + k), base)
        model.save_pretrained(root / name)
        if one is not None:
            one.save_pretrained(root / name)
        saved[name] = Expert(str(root / name))
    return saved


def ensemble(experts, module=None):
    return load_ensemble(experts, None, Average(), module or TextClassifier())


def test_tokenizers_that_do_the_same_are_one(tmp_path, caplog):
    found = ensemble(folders(tmp_path, tiny.tokenizer(), tiny.tokenizer()))
    assert found.tokenizers["x"] is found.tokenizers["y"] is found.tokenizer
    assert caplog.messages == []


def test_each_task_keeps_its_own(tmp_path, caplog):
    left = with_settings(tiny.tokenizer(), padding_side="left", model_max_length=16)
    found = ensemble(folders(tmp_path, tiny.tokenizer(), lower(), left))
    assert found.tokenizer is found.tokenizers
    assert [found.tokenizers[name]("RED")["input_ids"] for name in "xyz"] == [[1], [2], [1]]
    assert found.tokenizers["z"].padding_side == "left"
    assert caplog.messages == [
        "task 'y': its tokenizer has another normalizer than that of 'x'; each task keeps its own, "
        "in scoring and in what is saved",
        "task 'z': its tokenizer has another padding_side, model_max_length than that of 'x'; each "
        "task keeps its own, in scoring and in what is saved",
    ]


@pytest.mark.parametrize("order", [(None, "own"), ("own", None)])
def test_an_expert_without_a_tokenizer_borrows_one(tmp_path, order, caplog):
    found = ensemble(folders(tmp_path, *(lower() if one else None for one in order)))
    assert [found.tokenizers[name]("RED")["input_ids"] for name in "xy"] == [[2], [2]]
    lacking, lender = (tmp_path / name for name in ("xy" if order[0] is None else "yx"))
    assert caplog.messages == [f"{lacking}: no tokenizer; that of {lender} is used"]


def test_without_any_the_bases_serves(tmp_path):
    experts = folders(tmp_path, None, None)
    with pytest.raises(UserError, match="x: holds no tokenizer"):
        ensemble(experts)
    base = tiny.classifier(tiny.bert_config(), seed=1)
    where = save(base, tmp_path / "base", lower())
    found = load_ensemble(experts, where, Average(), TextClassifier())
    assert found.tokenizer("RED")["input_ids"] == [2]


def test_what_is_damaged_is_not_passed_over(tmp_path):
    experts = folders(tmp_path, tiny.tokenizer(), tiny.tokenizer())
    (tmp_path / "y" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="y: cannot read its tokenizer"):
        ensemble(experts)


def test_another_vocabulary_is_refused(tmp_path):
    words = tiny.tokenizer()
    state = json.loads(words.backend_tokenizer.to_str())
    ids = state["model"]["vocab"]
    ids["red"], ids["sea"] = ids["sea"], ids["red"]
    experts = folders(tmp_path, words, words)
    own = json.loads((tmp_path / "y" / "tokenizer.json").read_text())
    (tmp_path / "y" / "tokenizer.json").write_text(json.dumps(own | {"model": state["model"]}))
    with pytest.raises(UserError, match="in 2 tokens, such as 'red'; merge models of one token"):
        ensemble(experts)


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    more = tiny.tokenizer()
    more.add_tokens(["new"])
    with pytest.raises(UserError, match=f"{tmp_path}/x: its tokenizer gives the token 'new' the"):
        ensemble(folders(tmp_path, more, more))


def test_a_merge_scores_and_saves_each_task_with_its_own(tmp_path):
    """The scores are those of the saved models, run by transformers on each text alone."""
    first, second = tiny.tokenizer(), lower(padding_side="left")
    experts = folders(tmp_path, first, second)
    tasks = {name: task("abc", 7 * k) for k, name in enumerate("xy")}
    for one in tasks.values():
        for example in one.splits["test"]:
            example["text"] = example["text"].upper()
    report = merge(tmp_path, {name: one.path for name, one in experts.items()}, tasks)
    row = report.tests.rows[-1]
    for name, own in {"x": first, "y": second}.items():
        folder = tmp_path / "out" / "merged" / name
        read = AutoTokenizer.from_pretrained(folder)
        files = [Path(experts[name].path) / "tokenizer.json", folder / "tokenizer.json"]
        assert len({json.dumps(json.loads(file.read_text())) for file in files}) == 1
        assert read.padding_side == own.padding_side
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        right = 0
        for example in tasks[name].splits["test"]:
            tokens = read(example["text"], return_tensors="pt")
            with torch.no_grad():
                right += int(model(**tokens).logits.argmax()) == example["label"]
        assert row.scores[name] == pytest.approx(right / len(tasks[name].splits["test"]))


def test_a_causal_model_needs_no_padding_token_and_a_classifier_does(tmp_path):
    config = tiny.llama_config()
    config.pad_token_id = None
    tokenizer = tiny.text_tokenizer()
    tokenizer.pad_token = None
    model = tiny.language_model(config)
    ranked = {name: Expert(save(model, tmp_path / name, tokenizer)) for name in "xy"}
    assert ensemble(ranked, RankChoice()).tokenizer.pad_token is None
    model = tiny.classifier(config)
    classes = {name: Expert(save(model, tmp_path / f"c{name}", tokenizer)) for name in "xy"}
    with pytest.raises(UserError, match="cx: neither its config.json"):
        ensemble(classes)


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_a_classifier_without_padding_in_its_config_is_merged(tmp_path, kind):
    config = {"gpt2": tiny.gpt2_config, "llama": tiny.llama_config}[kind]()
    config.pad_token_id = None
    base = tiny.classifier(config, seed=1)
    experts = {
        name: save(near(tiny.classifier(config, seed=k), base), tmp_path / name,
                   tiny.text_tokenizer("[BOS] $A"))
        for k, name in enumerate("xy", 2)
    }  # fmt: skip
    tasks = {name: task("ab", 3 * k, metrics=("accuracy",)) for k, name in enumerate("xy")}
    for one in tasks.values():
        one.names = ["LABEL_0", "LABEL_1"]
    report = merge(tmp_path, experts, tasks)
    for name in "xy":
        saved = tmp_path / "out" / "merged" / name
        model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
        assert model.config.pad_token_id == 0
        read = AutoTokenizer.from_pretrained(saved)
        examples = tasks[name].splits["test"]
        with torch.no_grad():
            right = sum(
                int(model(**read(one["text"], return_tensors="pt")).logits.argmax()) == one["label"]
                for one in examples
            )
        assert report.tests.rows[-1].scores[name] == pytest.approx(right / len(examples))
