"""Losses of what a merge learns from, by hand; absent candidates have neither loss nor gradient."""

import math

import pytest
import torch

from fmerge.modules import TextClassifier
from fmerge.modules.losses import TARGETS, example_losses, expert_targets
from tests import tiny

INF = torch.inf


class Listed:
    """A module of given log-likelihoods, such as a language model's of an example's choices."""

    def __init__(self, values):
        self.values = torch.tensor(values, dtype=torch.float64, requires_grad=True)

    def lists_answers(self, task, estimator):
        return True

    def label_log_probs(self, batch):
        return self.values


def test_losses_of_listed_answers_by_hand():
    # the second example has two candidates, of probabilities 1/4 and 3/4
    merged = Listed([[0.0, 0.0, 0.0], [math.log(1.0), math.log(3.0), -INF]])
    batch = {"task": "t", "labels": torch.tensor([2, 0])}
    assert example_losses(merged, batch, "labels").tolist() == pytest.approx([
        math.log(3),
        math.log(4),
    ])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    found = example_losses(merged, batch, "entropy")
    assert found.tolist() == pytest.approx([math.log(3), entropy])
    found.sum().backward()
    assert merged.values.grad.isfinite().all() and merged.values.grad[1, 2] == 0
    # an expert with 1/2, 1/2, 0 and 1/2, 1/2; a batch may be wider or narrower than its rows
    expert = [[math.log(0.5), math.log(0.5), -INF, -INF], [math.log(0.5)] * 2 + [-INF] * 2]
    batch[TARGETS] = torch.tensor(expert)
    merged.values.grad = None
    found = example_losses(merged, batch, "experts")
    second = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.tolist() == pytest.approx([math.log(3 / 2), second])
    found.sum().backward()
    # of a softmax the gradient is q - p
    expected = torch.tensor([[1 / 3 - 1 / 2, 1 / 3 - 1 / 2, 1 / 3], [-0.25, 0.25, 0.0]])
    torch.testing.assert_close(merged.values.grad, expected.double())
    both = example_losses(merged, batch, "both").tolist()
    assert both == pytest.approx([(math.log(3) + math.log(3 / 2)) / 2, (math.log(4) + second) / 2])


def test_an_expert_diverges_from_itself_by_nothing():
    merged = Listed([[0.3, -1.0, 2.0], [0.1, 0.2, -INF]])
    batch = {"task": "t", "labels": torch.tensor([0, 0])}
    batch[TARGETS] = expert_targets(merged, batch).detach()
    found = example_losses(merged, batch, "experts")
    assert found.abs().max() < 1e-15
    found.sum().backward()
    assert merged.values.grad.abs().max() < 1e-15


def test_a_regression_is_half_a_squared_distance():
    module = TextClassifier()
    model = tiny.classifier(tiny.bert_config(("score",), problem_type="regression"))
    module.adopt({"t": model}, tiny.tokenizer())
    module.eval()
    examples = [{"text": "red cat", "label": 0.5}, {"text": "sea", "label": -1.0}]
    batch = module.collate(examples, "t")
    means = expert_targets(module, batch).detach()
    assert means.shape == (2, 1)
    batch[TARGETS] = means + torch.tensor([[1.0], [-2.0]])
    torch.testing.assert_close(
        example_losses(module, batch, "experts"), torch.tensor([0.5, 2.0]), rtol=1e-5, atol=1e-5
    )
    expected = (means[:, 0] - torch.tensor([0.5, -1.0])).square() / 2
    torch.testing.assert_close(example_losses(module, batch, "labels"), expected)
    both = example_losses(module, batch, "both")
    torch.testing.assert_close(both, (expected + torch.tensor([0.5, 2.0])) / 2)


def test_losses_of_several_labels_add_up():
    module = TextClassifier()
    config = tiny.bert_config(("a", "b", "c"), problem_type="multi_label_classification")
    module.adopt({"t": tiny.classifier(config)}, tiny.tokenizer())
    module.eval()
    examples = [{"text": "red cat", "label": [0, 1, 1]}, {"text": "sea", "label": [0, 0, 0]}]
    batch = module.collate(examples, "t")
    q = module.outputs(batch).detach().sigmoid()
    truth = torch.tensor([[0, 1, 1], [0, 0, 0]])
    expected = -torch.where(truth == 1, q, 1 - q).log().sum(1)
    torch.testing.assert_close(example_losses(module, batch, "labels"), expected)
    entropy = -(q * q.log() + (1 - q) * (1 - q).log()).sum(1)
    torch.testing.assert_close(example_losses(module, batch, "entropy"), entropy)
    p = torch.tensor([[0.2, 0.5, 0.9], [0.4, 0.1, 0.7]])
    batch[TARGETS] = torch.stack([1 - p, p], dim=2).log().flatten(1)
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1)
    torch.testing.assert_close(example_losses(module, batch, "experts"), expected)
    batch[TARGETS] = expert_targets(module, batch).detach()
    assert example_losses(module, batch, "experts").abs().max() < 1e-6
