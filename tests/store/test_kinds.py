"""What is no model of the wanted kind is refused by what it is."""

import pytest
from transformers import (
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    GPT2LMHeadModel,
    ViTConfig,
    Wav2Vec2Config,
)

import fmerge
from fmerge.errors import UserError
from fmerge.store import load_classifier, load_language_model
from fmerge.store.kinds import check_kind
from tests import tiny

CLASSES, SPANS = "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"
CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"


def named(config, *architectures):
    config.architectures = list(architectures)
    return config


@pytest.mark.parametrize(
    ("config", "auto", "any_head"),
    [
        (tiny.bert_config(), CLASSES, False),  # an old config names none
        (named(tiny.bert_config(), "BertForSequenceClassification"), CLASSES, False),
        (named(tiny.bert_config(), "TFBertForSequenceClassification"), CLASSES, False),
        (named(tiny.bert_config(), "BertForMaskedLM"), CLASSES, False),  # whose head is lacking
        (named(tiny.bert_config(), "BertForTokenClassification"), CLASSES, True),
        (named(tiny.bert_config(), "OwnBert"), CLASSES, True),  # of which the body alone counts
        (named(tiny.t5_config(), "T5WithLMHeadModel"), SEQ2SEQ, False),  # its former name
        (named(tiny.llama_config(), "LLaMAForCausalLM"), CAUSAL, False),
        (named(tiny.gpt2_config(), "GPT2Model"), CAUSAL, False),
    ],
)
def test_models_of_the_kind(config, auto, any_head):
    check_kind("x", config, auto, any_head)


@pytest.mark.parametrize(
    ("config", "auto", "any_head", "says"),
    [
        (
            named(tiny.bert_config(), "BertForTokenClassification"), CLASSES, False,
            "is a BertForTokenClassification, a token classifier, as for named entities (NER), not "
            "a BertForSequenceClassification; give --model TokenClassifier",
        ),
        (
            named(tiny.bert_config(), "BertForMultipleChoice"), SPANS, False,
            "is a BertForMultipleChoice, a multiple-choice model, not a BertForQuestionAnswering",
        ),
        (
            named(tiny.bert_config(), "BertForQuestionAnswering"), CLASSES, False,
            "not a BertForSequenceClassification; give --model SpanAnswers",
        ),
        (
            named(tiny.bert_config(), "BertForSequenceClassification"), SPANS, False,
            "not a BertForQuestionAnswering; give --model TextClassifier",
        ),
        (
            named(tiny.llama_config(), "MistralForCausalLM"), CAUSAL, False,
            "names the architecture MistralForCausalLM, but its model_type is llama, which "
            "LlamaForCausalLM would run; correct the wrong one",
        ),
        (
            named(tiny.bert_config(), "RobertaModel"), CLASSES, True,
            "names the architecture RobertaModel, but its model_type is bert",
        ),
        (
            named(tiny.bert_config(), "BertForSentiment"), CLASSES, False,
            "is a BertForSentiment, an architecture unknown to transformers, not a BertForSeq",
        ),
        (
            named(ViTConfig(), "ViTForImageClassification"), CLASSES, True,
            "is a ViTForImageClassification, a vision model, not a text classifier; give --model "
            "ImageClassifier",
        ),
        (ViTConfig(), CAUSAL, False, "is a vit, a vision model, not a causal language model"),
        (
            named(Wav2Vec2Config(), "Wav2Vec2ForSequenceClassification"), CLASSES, False,
            "is a Wav2Vec2ForSequenceClassification, a speech model, not a text classifier",
        ),
        (tiny.llama_config(), SEQ2SEQ, False, "is a model of type llama, not a text-to-text"),
    ],
)  # fmt: skip
def test_models_of_another_kind(config, auto, any_head, says):
    with pytest.raises(UserError) as refused:
        check_kind("x", config, auto, any_head)
    line = str(refused.value)
    assert line.startswith("x: ") and says in line and len(line) < 300


def test_a_head_for_tokens_is_no_head_for_texts(tmp_path):
    # both are a linear layer of one name and shape: read as the other, it would answer at random
    folder = tiny.save(BertForTokenClassification(tiny.bert_config()), tmp_path / "ner")
    with pytest.raises(UserError, match=r"it is a token classifier \(BertForTokenClassification"):
        load_classifier(folder, "x")
    read = load_classifier(folder, "x", head="token classification")
    assert isinstance(read, BertForTokenClassification)
    texts = tiny.save(tiny.classifier(tiny.bert_config()), tmp_path / "texts")
    with pytest.raises(UserError, match="has no token classification head: it is a text classifi"):
        load_classifier(texts, "x", head="token classification")


def test_a_missing_head_says_what_there_is(tmp_path):
    folder = tiny.save(BertModel(tiny.bert_config()), tmp_path / "body")
    with pytest.raises(UserError, match=r"'classifier.bias' is missing, as it is a BertModel\)"):
        load_classifier(folder, "x")
    (tmp_path / "body" / "modules.json").write_text("[]")
    with pytest.raises(UserError, match="as it is an embedding model of sentence-transformers"):
        load_classifier(folder, "x")
    with pytest.raises(UserError, match="is missing, and .* more, as it is an embedding model"):
        load_language_model(folder)
    load_classifier(folder, "x", fresh_head=True)  # a base like any other


def test_an_encoder_in_pre_training_writes_no_text(tmp_path):
    folder = tiny.save(BertForPreTraining(tiny.bert_config()), tmp_path / "bert")
    with pytest.raises(UserError, match="is a BertForPreTraining, which generates no text"):
        load_language_model(folder)
    load_classifier(folder, "x", fresh_head=True)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.gguf", b"", "is a GGUF model"),
        ("model", b"GGUF\x03", "is a GGUF model"),
        ("adapter_model.safetensors", b"", "is an adapter"),
        ("model.safetensors", b"", "is a file of weights alone; give the folder"),
        ("pytorch_model.bin", b"", "is a file of weights alone; give the folder"),
        ("notes.txt", b"a", "is neither a Hugging Face folder nor a Lightning .ckpt"),
    ],
)
def test_files(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_classifier(str(tmp_path / name), "x")


def test_tensors_of_adapters_and_gguf_files(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter .PEFT, LoRA., not a whole model"):
        fmerge.load_params(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="holds an adapter .adapter_config.json. beside the wei"):
        load_classifier(str(tmp_path), "x")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="a.gguf: is a GGUF model"):
        fmerge.load_params(tmp_path / "a.gguf")


def test_heads_of_all_kinds_are_left_out_of_a_base(tmp_path):
    base = BertForQuestionAnswering(tiny.bert_config())
    folder = tiny.save(base, tmp_path / "qa")
    assert load_classifier(folder, "x", head="question answering").config.architectures
    text = tiny.text_tokenizer()
    GPT2LMHeadModel(tiny.gpt2_config()).save_pretrained(tmp_path / "gpt2")
    text.save_pretrained(tmp_path / "gpt2")
    model = load_classifier(str(tmp_path / "gpt2"), "x", ["a", "b"], fresh_head=True)
    assert type(model).__name__ == "GPT2ForSequenceClassification"
