"""Which module runs a model, and what is said where another was to run it."""

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
)

from fmerge.errors import UserError
from fmerge.modules import RankChoice, SpanAnswers, TextClassifier
from fmerge.store import first_class_path
from tests import tiny

MODELS = {
    "t5": lambda: tiny.language_model(tiny.t5_config()),
    "bart": lambda: tiny.language_model(tiny.bart_config()),
    "gpt2": lambda: tiny.language_model(tiny.gpt2_config()),
    "llama": lambda: tiny.language_model(tiny.llama_config()),
    "spans": lambda: AutoModelForQuestionAnswering.from_config(tiny.bert_config()),
    "classes": lambda: tiny.classifier(tiny.bert_config()),
    "tags": lambda: AutoModelForTokenClassification.from_config(tiny.bert_config()),
    "words": lambda: AutoModelForMaskedLM.from_config(tiny.bert_config()),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    return {name: tiny.save(make(), root / name) for name, make in MODELS.items()}


@pytest.mark.parametrize(
    ("names", "module"),
    [
        (["t5"], "RankChoice"),
        (["bart"], "RankChoice"),
        (["gpt2"], "RankChoice"),
        (["llama"], "RankChoice"),
        (["spans"], "SpanAnswers"),
        (["classes"], "TextClassifier"),
        (["tags"], "TokenClassifier"),
        (["words"], None),
        (["words", "spans"], "SpanAnswers"),
        ([], None),
    ],
)
def test_the_architecture_tells_the_module(saved, names, module):
    expected = None if module is None else f"fmerge.modules.{module}"
    assert first_class_path([saved[name] for name in names]) == expected


def test_what_cannot_be_read_tells_nothing(saved, tmp_path):
    absent = str(tmp_path / "absent")
    assert first_class_path([absent]) is None
    assert first_class_path([absent, saved["t5"]]) == "fmerge.modules.RankChoice"


def test_a_fits_checkpoint_tells_its_class(tmp_path):
    made = {"state_dict": {}, "hyper_parameters": {"_class_path": "fmerge.modules.SpanAnswers"}}
    torch.save(made, tmp_path / "best.ckpt")
    assert first_class_path([str(tmp_path / "best.ckpt")]) == "fmerge.modules.SpanAnswers"
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    assert first_class_path([str(tmp_path / "other.ckpt")]) is None


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (TextClassifier, "gpt2", r"is a language model \(GPT2LMHeadModel\): --model RankChoice"),
        (TextClassifier, "llama", r"is a language model \(LlamaForCausalLM\): --model RankChoice"),
        (TextClassifier, "bart", "is a language model .*: --model RankChoice"),
        (TextClassifier, "spans", "a question-answering model .*: --model SpanAnswers"),
        (SpanAnswers, "classes", "a text classifier .*: --model TextClassifier"),
        (RankChoice, "classes", "a text classifier .*: --model TextClassifier"),
        (RankChoice, "spans", "a question-answering model .*: --model SpanAnswers"),
        (TextClassifier, "words", "no trained classification head .* fine-tune it first with"),
    ],
)
def test_a_module_names_the_one_that_runs_a_model(saved, module, name, message):
    with pytest.raises(UserError, match=message):
        module().read(saved[name], "x", ["a", "b", "c"])
