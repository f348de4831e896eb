"""Each text of a padded batch has the values that it has alone, on any architecture."""

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    DistilBertConfig,
    FNetConfig,
    IBertConfig,
    MixtralConfig,
    OPTConfig,
    RobertaConfig,
    XLNetConfig,
)

from fmerge.errors import UserError
from fmerge.modules import RankChoice, SpanAnswers, TextClassifier
from fmerge.modules.tokenized import model_inputs
from tests import tiny

V = tiny.TEXT["vocab_size"]
SMALL = {
    "vocab_size": V, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "bert": lambda: tiny.bert_config(vocab_size=V),
    "gpt2": tiny.gpt2_config,
    "llama": tiny.llama_config,
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=16, word_embed_proj_dim=12),
    "roberta": lambda: RobertaConfig(**SMALL),
    "ibert": lambda: IBertConfig(**SMALL),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=V, dim=12, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32
    ),
    "xlnet": lambda: XLNetConfig(
        vocab_size=V, d_model=12, n_layer=1, n_head=2, d_inner=16, pad_token_id=0
    ),
    "bart": tiny.bart_config,
}
TEXTS = ["red cat", "one two three four red", "blue", "sky sea sun"]


def adopted(config, tokenizer):
    module = TextClassifier()
    module.adopt({"x": tiny.classifier(config)}, tokenizer)
    return module.double().eval()


def log_probs(module, texts):
    batch = module.collate([{"text": text, "label": 0} for text in texts], "x")
    with torch.no_grad():
        return module.label_log_probs(batch)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_padding_changes_no_value(kind, side):
    tokenizer = tiny.text_tokenizer()
    tokenizer.padding_side = side
    module = adopted(CONFIGS[kind](), tokenizer)
    alone = torch.cat([log_probs(module, [text]) for text in TEXTS])
    torch.testing.assert_close(log_probs(module, TEXTS), alone, rtol=1e-9, atol=1e-9)
    assert tokenizer.padding_side == side


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "roberta"])
@pytest.mark.parametrize("own", [None, 3, -1])
def test_padding_that_a_config_names_otherwise_or_not_at_all(kind, own):
    config = CONFIGS[kind]()
    if kind != "roberta" or own == 3:  # an encoder's padding is in its positions
        config.pad_token_id = own
    module = adopted(config, tiny.text_tokenizer("[BOS] $A"))
    alone = torch.cat([log_probs(module, [text]) for text in TEXTS])
    torch.testing.assert_close(log_probs(module, TEXTS), alone, rtol=1e-9, atol=1e-9)


def test_a_network_gets_the_inputs_that_it_takes():
    tokenizer = tiny.text_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    fourier = FNetConfig(vocab_size=V, hidden_size=12, num_hidden_layers=1, intermediate_size=16)
    for config, taken in [
        (fourier, {"input_ids", "token_type_ids"}),
        (CONFIGS["distilbert"](), {"input_ids", "attention_mask"}),
        (CONFIGS["bert"](), {"input_ids", "attention_mask", "token_type_ids"}),
    ]:
        module = adopted(config, tokenizer)
        batch = module.collate([{"text": text, "label": 0} for text in TEXTS], "x")
        assert set(model_inputs(module.task_model("x"), batch)) == taken
        assert batch["attention_mask"].sum(1).tolist() == [3, 6, 2, 4]
        assert module.label_log_probs(batch).shape == (4, config.num_labels)


def test_types_of_tokens_without_embeddings_are_refused():
    tokenizer = tiny.bert_like_tokenizer()
    module = adopted(tiny.bert_config(vocab_size=V, type_vocab_size=1), tokenizer)
    single, pair = {"text": "red", "label": 0}, {"text": "red", "text_pair": "sea", "label": 0}
    module.collate([single], "x")
    with pytest.raises(UserError, match="task 'x': its tokenizer gives the token type 1, but its"):
        module.collate([pair], "x")
    adopted(tiny.bert_config(vocab_size=V), tokenizer).collate([pair], "x")


def test_each_task_is_tokenized_by_its_own_tokenizer():
    first, second = tiny.text_tokenizer(), tiny.text_tokenizer("[BOS] $A [EOS]")
    second.model_max_length = 4
    module = TextClassifier()
    models = {task: tiny.classifier(tiny.bert_config(vocab_size=V)) for task in "xy"}
    module.adopt(models, {"x": first, "y": second})
    example = {"text": "red cat blue sky", "label": 0}
    assert module.collate([example], "x")["input_ids"][0].tolist() == [4, 7, 6, 10, 2]
    assert module.collate([example], "y")["input_ids"][0].tolist() == [3, 4, 7, 2]
    assert module.tokenizer is first and module.tokenizer_of("y") is second


def test_every_module_keeps_the_tokenizers_of_its_tasks(tmp_path):
    first, second = tiny.text_tokenizer(), tiny.text_tokenizer("[BOS] $A [EOS]")
    spans = SpanAnswers()
    network = AutoModelForQuestionAnswering.from_config(tiny.bert_config(vocab_size=V))
    spans.adopt({"x": network, "y": network}, {"x": first, "y": second})
    question = {"text": "red", "text_pair": "cat sea", "label": (-1, -1)}
    assert spans.collate([question], "x")["input_ids"].shape == (1, 3)
    ranking = RankChoice()
    model = tiny.language_model(tiny.llama_config())
    ranking.adopt({"x": model, "y": model}, {"x": first, "y": second})
    example = {"text": "red", "choices": ["cat", "sea"], "label": 0}
    assert ranking.collate([example], "x")["input_ids"].tolist() == [[4]]
    assert ranking.collate([example], "y")["input_ids"].tolist() == [[3, 4]]
    ranking.save(tmp_path / "ranking")
    folders = {"": "$A", "tokenizers/x": "$A", "tokenizers/y": "[BOS] $A"}
    for name, template in folders.items():
        saved = tiny.read_tokenizer(tmp_path / "ranking" / name)
        assert saved("red")["input_ids"] == ([3, 4, 2] if "BOS" in template else [4, 2])


def test_examples_of_another_module_name_it():
    module = adopted(CONFIGS["bert"](), tiny.text_tokenizer())
    with pytest.raises(UserError, match="task 'x': .* choices, .* give --model RankChoice"):
        module.collate([{"text": "red", "choices": ["a", "b"], "label": 0}], "x")
    with pytest.raises(UserError, match="task 'x': its answers are parts .* --model SpanAnswers"):
        module.collate([{"text": "red", "text_pair": "cat", "label": (0, 1)}], "x")
    ranking = RankChoice()
    ranking.adopt({"x": tiny.language_model(tiny.gpt2_config())}, tiny.text_tokenizer())
    with pytest.raises(UserError, match="has no choices, .* give --model TextClassifier, or data"):
        ranking.collate([{"text": "red", "label": 0}], "x")


def test_a_mixture_of_experts_runs_in_float64():
    """Grouped matrix products have no float64; the experts run one by one."""
    config = MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=3)
    module = TextClassifier()
    module.adopt({"x": tiny.classifier(config)}, tiny.tokenizer())
    module.eval()
    batch = module.collate([{"text": text, "label": 0} for text in TEXTS], "x")
    with torch.no_grad():
        narrow = module.label_log_probs(batch)
        wide = module.double().label_log_probs(batch)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), narrow, rtol=1e-4, atol=1e-5)
