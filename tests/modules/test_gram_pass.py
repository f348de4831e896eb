"""Gram matrices against plain loops over single examples and choices, without padding."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader
from transformers import DebertaV2Config
from transformers.pytorch_utils import Conv1D

from fmerge.modules import GramPass, TextClassifier, linear_weights
from fmerge.modules.token_masks import token_masks, with_distinct_lengths
from tests import tiny
from tests.compare import assert_same
from tests.modules.test_rank_choice import make

SENTENCES = [{"text": text, "label": 0} for text in tiny.sentences(11, seed=4)]


def headed(config=None):
    module = TextClassifier()
    model = tiny.classifier(config or tiny.bert_config())
    module.adopt({"one": model}, tiny.tokenizer())
    return module.double().eval()


def questions():
    """Prompts and choices of many lengths; in some batches the longest of both are as long."""
    texts = tiny.sentences(11, seed=5)
    return [
        {"text": text, "choices": tiny.sentences(2 + i % 3, seed=20 + i), "label": 0}
        for i, text in enumerate(texts)
    ]


def found(module, examples, batch_size):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    loader = DataLoader(
        examples, batch_size=batch_size, collate_fn=lambda some: module.collate(some, "one")
    )
    one = GramPass(module, "one")
    trainer.predict(one, dataloaders=loader, return_predictions=False)
    assert not any(layer._forward_pre_hooks for layer in module.modules())
    return one.grams


def matrices(grams):
    return {name: gram.matrix for name, gram in grams.items()}


class Loop:
    """Σ x xᵀ of every linear layer of the body, all positions, one row at a time."""

    def __init__(self, model, body):
        self.sums, self.model = {}, model
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear | Conv1D) and f"{name}.weight" in body:
                layer.register_forward_hook(self.hook(f"{name}.weight"))

    def hook(self, name):
        def add(layer, inputs, output):
            (x,) = inputs
            assert len(x) == 1
            rows = x.detach().reshape(-1, x.shape[-1])
            self.sums[name] = self.sums.get(name, 0) + sum(torch.outer(r, r) for r in rows)

        return add


@pytest.mark.parametrize("batch_size", [1, 4])
def test_of_a_classifier(batch_size):
    module = headed()
    grams = matrices(found(module, SENTENCES, batch_size))
    model = module.task_model("one")
    loop = Loop(model, module.body(model))
    for example in SENTENCES:
        model(**tiny.tokenizer()(example["text"], return_tensors="pt"))
    assert len(grams) == 2 * 6 + 1 and grams["bert.pooler.dense.weight"].shape == (16, 16)
    assert_same(grams, loop.sums)


@pytest.mark.parametrize("kind", ["t5", "t5_gated_untied", "bart"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_of_a_text_to_text_model(kind, batch_size):
    module = make(kind)
    model, tokenizer = module.model, module.tokenizer
    grams = matrices(found(module, questions(), batch_size))
    loop = Loop(model, set(grams))
    start = model.config.decoder_start_token_id
    for example in questions():
        prompt = tokenizer(example["text"], return_tensors="pt")["input_ids"]
        states = model.get_encoder()(input_ids=prompt)
        for choice in example["choices"]:
            answer = tokenizer(text_target=choice)["input_ids"]
            model(encoder_outputs=states, decoder_input_ids=torch.tensor([[start, *answer[:-1]]]))
    expected = {n for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n}
    assert set(grams) == {
        n
        for n in expected
        if "shared" not in n and "lm_head" not in n and "relative_attention_bias" not in n
    }
    assert_same(grams, loop.sums)


def test_equal_lengths_are_made_distinct():
    """The test above means something: some of its batches have t = s."""
    module = make("t5")
    sizes = [module.collate(questions()[i : i + 4], "one") for i in range(0, 11, 4)]
    sizes += [module.collate([one], "one") for one in questions()]
    same = [b for b in sizes if b["input_ids"].shape[1] == b["choice_ids"].shape[2]]
    assert same
    for batch in same:
        masks = token_masks(with_distinct_lengths(batch, True), True)
        assert len({mask.shape for mask in masks}) == 3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_of_a_causal_model(kind, batch_size):
    module = make(kind)
    model, tokenizer = module.model, module.tokenizer
    grams = found(module, questions(), batch_size)
    assert all(gram.inputs_first == (kind == "gpt2") for gram in grams.values())
    loop = Loop(model, set(grams))
    for example in questions():
        prompt = tokenizer(example["text"])["input_ids"]
        for choice in example["choices"]:
            answer = [*tokenizer(choice, add_special_tokens=False)["input_ids"], 2]
            model(input_ids=torch.tensor([prompt + answer]))
    assert len(grams) == 2 * (4 if kind == "gpt2" else 7)  # no Gram of the output layer
    assert_same(matrices(grams), loop.sums)


class Shared(nn.Module):
    """Two layers of one weight, one of them used twice, and one tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.first, self.second, self.tied = (nn.Linear(3, n) for n in (3, 3, 7))
        self.second.weight, self.tied.weight = self.first.weight, self.embedding.weight


def test_shared_weights_have_one_entry_and_embeddings_none():
    network = Shared()
    weights = linear_weights(network, dict(network.named_parameters()))
    assert list(weights) == ["first.weight"]
    assert weights["first.weight"].layers == [network.first, network.second]


def test_uses_of_a_shared_weight_add_up():
    module = headed()
    model = module.task_model("one")
    first, second = (layer.intermediate.dense for layer in model.bert.encoder.layer)
    second.weight = first.weight
    grams = matrices(found(module, SENTENCES, 4))
    names = [f"bert.encoder.layer.{i}.intermediate.dense.weight" for i in range(2)]
    assert names[0] in grams and names[1] not in grams
    loop = Loop(model, set(grams))
    uses = []
    for layer in (first, second):
        layer.register_forward_hook(lambda _, inputs, __: uses.append(inputs[0][0].detach()))
    for example in SENTENCES:
        model(**tiny.tokenizer()(example["text"], return_tensors="pt"))
    loop.sums[names[0]] = sum(x.T @ x for x in uses)
    assert_same(grams, loop.sums)


def test_layers_of_other_inputs_are_left_to_the_average(caplog):
    """DeBERTa's keys and queries read relative positions too, which are no tokens of the batch."""
    settings = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pad_token_id": 0}
    config = DebertaV2Config(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, share_att_key=True, **settings,
    )  # fmt: skip
    grams = found(headed(config), SENTENCES, 4)
    names = {name.rsplit(".", 2)[1] for name in grams}
    assert "value_proj" in names and not names & {"key_proj", "query_proj"}
    assert "averages 2 weights of 'one', such as 'deberta." in caplog.text
