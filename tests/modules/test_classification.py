"""The task module: one body, many heads, and losses and scores that follow from ℓ."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fmerge.errors import UserError
from fmerge.modules import FeaturePass, TextClassifier
from fmerge.modules.tokenized import model_inputs
from fmerge.params import last_linear
from fmerge.store import load_classifier, load_tokenizer
from tests import hub_layout, tiny


@pytest.fixture
def module(zoo):
    module = TextClassifier(max_length=4)
    models = {task: load_classifier(path, task) for task, path in zoo.experts.items()}
    module.adopt(models, load_tokenizer(zoo.base))
    return module


def batch(module, task, n=5):
    examples = [{"text": text, "label": i % 2} for i, text in enumerate(tiny.sentences(n, 3))]
    return module.collate(examples, task)


def test_all_tasks_share_one_body_and_keep_their_heads(module, zoo):
    first, second = (module.task_model(task) for task in zoo.experts)
    assert first.base_model is second.base_model
    assert first.classifier.out_features == 3 and second.classifier.out_features == 2
    bodies = {id(p) for p in first.base_model.parameters()}
    assert len(list(module.models.parameters())) == len(bodies) + 4
    assert module.tasks == tiny.LABELS
    assert all(submodule.training for submodule in module.models.modules())


def test_log_likelihoods_are_those_of_the_classifier(module, zoo):
    module.eval()
    for task, path in zoo.experts.items():
        one = batch(module, task)
        assert one["task"] == task and one["labels"].tolist() == [0, 1, 0, 1, 0]
        assert one["input_ids"].shape == (5, 4)  # cut to max_length
        own = AutoModelForSequenceClassification.from_pretrained(path).eval()
        if task == "colour":  # the live body is the first expert's
            logits = own(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits
            torch.testing.assert_close(module.label_log_probs(one), logits.log_softmax(1))


def test_half_precision_logits_give_float32_log_likelihoods(module):
    module.to(torch.bfloat16)
    found = module.label_log_probs(batch(module, "colour"))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5))


def test_the_training_loss_is_the_mean_cross_entropy_of_the_tasks(module, zoo):
    module.eval()
    module.log = lambda *args, **options: None
    batches = {task: batch(module, task) for task in zoo.experts}
    expected = [
        torch.nn.functional.cross_entropy(module.label_log_probs(one), one["labels"])
        for one in batches.values()
    ]
    torch.testing.assert_close(module.training_step(batches, 0), sum(expected) / 2)


def test_pairs_are_tokenized_together(module):
    pair = [{"text": "red cat", "text_pair": "blue dog", "label": 0}]
    words = module.tokenizer.convert_ids_to_tokens(module.collate(pair, "colour")["input_ids"][0])
    assert words == ["red", "cat", "blue", "dog"]


def test_texts_are_cut_to_the_positions_that_a_roberta_has():
    """RoBERTa counts its positions from behind that of the padding: 12 of them are 11 tokens."""
    config = hub_layout.roberta_config(max_position_embeddings=12)
    module = TextClassifier()
    module.adopt({"x": tiny.classifier(config)}, tiny.tokenizer())
    one = module.collate([{"text": " ".join(20 * ["red"]), "label": 0}], "x")
    assert one["input_ids"].shape == (1, 11)
    assert module.label_log_probs(one).shape == (1, 2)


def test_what_is_used_too_early_is_said():
    with pytest.raises(RuntimeError, match="configure_model or adopt"):
        TextClassifier().collate([{"text": "red", "label": 0}], "colour")
    with pytest.raises(RuntimeError, match="configure_model or adopt"):
        TextClassifier().save("anywhere")


def test_what_enters_the_last_layer_is_seen(module):
    module.eval()
    one = batch(module, "colour", n=6)
    features, labels = FeaturePass(module, "colour").predict_step(one, 0)
    model = module.task_model("colour")
    logits = torch.nn.functional.linear(features, model.classifier.weight, model.classifier.bias)
    torch.testing.assert_close(logits.log_softmax(1), module.label_log_probs(one))
    assert torch.equal(labels, one["labels"])


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (hub_layout.roberta_config(), "classifier.out_proj"),  # a head of two layers
        (tiny.gpt2_config(), "score"),  # of every token, without a bias; the last token's counts
    ],
)
def test_heads_of_other_architectures(config, name):
    module = TextClassifier()
    module.adopt({"x": tiny.classifier(config)}, tiny.tokenizer())
    module.eval()
    one = batch(module, "x")
    assert len(set(one["attention_mask"].sum(1).tolist())) > 1  # some are padded
    inputs = FeaturePass(module, "x")
    features, _ = inputs.predict_step(one, 0)
    assert inputs.ends_head
    assert (inputs.name, features.shape) == (name, (5, inputs.layer.in_features))
    logits = module.task_model("x")(**model_inputs(module.task_model("x"), one)).logits
    torch.testing.assert_close(inputs.layer(features), logits)


def test_a_head_that_goes_on_after_its_last_layer_is_noticed(module):
    model = module.task_model("colour")
    assert last_linear(model)[0] == "classifier"
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Tanh())
    inputs = FeaturePass(module.eval(), "colour")
    inputs.predict_step(batch(module, "colour"), 0)
    assert not inputs.ends_head
    model.classifier = torch.nn.Identity()
    with pytest.raises(UserError, match="head of task 'colour' has no linear layer"):
        FeaturePass(module, "colour")
