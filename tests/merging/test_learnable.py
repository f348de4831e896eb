"""Gradients of what a merge learns: against differences of the loss, and autograd through it."""

import copy

import pytest
import torch

from fmerge.errors import UserError
from fmerge.merging.assembler import Assembler
from fmerge.merging.check_gradient import check_gradient
from fmerge.merging.learnable import Coefficients, Weights, learned_groups
from fmerge.methods import (
    DARE,
    TIES,
    Average,
    DFMerge,
    FisherMerge,
    Isotropic,
    MergeMethod,
    TaskArithmetic,
)
from fmerge.modules import TextClassifier
from fmerge.modules.learner import Learner
from fmerge.modules.losses import TARGETS, example_losses, expert_targets
from tests import tiny
from tests.evaluation.tiny_tasks import examples, models

TASKS = list(tiny.LABELS)


class Case:
    """Two classifiers in float64 whose shared body is a merge of theirs."""

    def __init__(self, method, groups="layers", loss="experts"):
        torch.manual_seed(0)
        experts = {task: model.double() for task, model in models().items()}
        self.module = TextClassifier()
        self.module.adopt(copy.deepcopy(experts), tiny.tokenizer())
        self.module.eval()
        self.bodies = {
            task: {name: one.clone() for name, one in self.module.body(model).items()}
            for task, model in experts.items()
        }
        origin = tiny.classifier(tiny.bert_config(), seed=1).double()
        self.base = {
            name: one
            for name, one in self.module.body(origin).items()
            if name in self.bodies[TASKS[0]]
        }
        self.loss, network = loss, self.module.task_model(TASKS[0])
        self.body = {n: p for n, p in network.named_parameters() if n in self.base}
        self.heads = {
            task: {
                n: p
                for n, p in self.module.task_model(task).named_parameters()
                if n not in self.base
            }
            for task in TASKS
        }
        self.batches = {
            task: self.module.collate(examples(5, len(labels), 3), task)
            for task, labels in tiny.LABELS.items()
        }
        if loss == "experts":
            for task in TASKS:
                self.write(self.bodies[task])
                self.batches[task][TARGETS] = expert_targets(
                    self.module, self.batches[task]
                ).detach()
        parts = learned_groups(list(self.base), groups)
        assembler = Assembler(method, self.base, self.bodies, lambda name, body: {}, parts=parts)
        names = [f"{task}/{group}" for task in TASKS for group in parts]
        self.start = {name: 0.2 + 0.05 * (i % 7) for i, name in enumerate(names)}
        self.learnable = Coefficients(assembler, self.start, self.body, self.heads, 0.1, 0.1)

    def write(self, body):
        with torch.no_grad():
            for name, one in self.body.items():
                one.copy_(body[name])

    def gradients(self, learnable=None):
        """What the optimizer sees after one step's backward pass."""
        sizes = {task: len(batch["labels"]) for task, batch in self.batches.items()}
        learner = Learner(self.module, learnable or self.learnable, self.loss, sizes)
        learner.trainer = type("One", (), {"world_size": 1})()
        learner._trainer = learner.trainer
        learner.zero_grad()
        learner.training_step(self.batches, 0).backward()
        return {name: one.grad for name, one in learner.learnable.named_parameters()}

    def value(self):
        """The sum over tasks of the mean loss, at λ and heads as they are."""
        self.learnable.write()
        with torch.no_grad():
            return sum(
                float(example_losses(self.module, one, self.loss).mean())
                for one in self.batches.values()
            )


@pytest.mark.parametrize("loss", ["labels", "experts", "entropy"])
def test_gradients_are_differences_of_the_loss(loss):
    case, h = Case(TaskArithmetic(), loss=loss), 1e-5
    found = case.gradients()
    for values, places in ((case.learnable.values, [(0, 0), (1, 2), (0, 1)]),
                           (case.learnable.heads[0], [(0, 3), (1, 7)])):  # fmt: skip
        name = "values" if values is case.learnable.values else "heads.0"
        for place in places:
            ends = []
            for shift in (h, -2 * h):
                with torch.no_grad():
                    values[place] += shift
                ends.append(case.value())
            with torch.no_grad():
                values[place] += h
            expected = (ends[0] - ends[1]) / (2 * h)
            assert float(found[name][place]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("method", "groups"), [(TaskArithmetic(), "tensors"), (TIES(density=1.0), "layers")]
)
def test_gradients_are_those_of_autograd_through_the_merge(method, groups):
    case = Case(method, groups)
    found = case.gradients()["values"]
    values = case.learnable.values.detach().clone().requires_grad_()
    parts = learned_groups(list(case.base), groups)
    network, total = case.module.task_model(TASKS[0]), 0.0
    merged = {}
    for column, names in enumerate(parts.values()):
        vectors = [
            {name: case.bodies[task][name] - case.base[name] for name in names} for task in TASKS
        ]
        if isinstance(method, TIES):
            merged |= ties(case.base, vectors, values[:, column], names)
        else:
            merged |= {
                name: case.base[name] + sum(values[m, column] * vectors[m][name] for m in (0, 1))
                for name in names
            }
    for task, batch in case.batches.items():
        network = case.module.task_model(task)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = torch.func.functional_call(network, merged, kwargs=inputs).logits
        log_p = batch[TARGETS]
        total = total + (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1).mean()
    (expected,) = torch.autograd.grad(total, values)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)
    assert expected.abs().max() > 1e-3


def ties(base, vectors, coefficients, names):
    """Yadav et al. 2023, algorithm 1, steps 2 and 3."""
    merged = {}
    for name in names:
        stacked = torch.stack([own[name] for own in vectors])
        shares = coefficients.view(-1, *[1] * (stacked.ndim - 1))
        sign = (shares * stacked).sum(0).detach().sign()
        agree = (stacked.sign() == sign).double()
        weight = (shares * agree).sum(0)
        mean = (shares * agree * stacked).sum(0) / weight.clamp_min(1e-30)
        merged[name] = base[name] + torch.where(weight > 0, mean, 0.0)
    return merged


def test_the_anchor_adds_its_own_gradient():
    case = Case(TaskArithmetic())
    fisher = {name: torch.rand_like(one) for name, one in case.body.items()}
    heads = {t: {n: torch.rand_like(p) for n, p in own.items()} for t, own in case.heads.items()}
    plain = case.gradients(Weights(case.body, case.heads, 0.1))
    anchored = Weights(case.body, case.heads, 0.1, 3.0, (fisher, heads))
    moved = 0.01
    with torch.no_grad():
        for one in (*case.body.values(), *(p for own in case.heads.values() for p in own.values())):
            one += moved
    there = case.gradients(Weights(case.body, case.heads, 0.1))
    found = case.gradients(anchored)
    every = [*fisher.values(), *(f for own in heads.values() for f in own.values())]
    for i, one in enumerate(every):
        expected = there[f"weights.{i}"] + 2 * 3.0 * one * moved
        torch.testing.assert_close(found[f"weights.{i}"], expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(plain["weights.0"], there["weights.0"])


def test_groups_of_layers_and_of_tensors():
    names = [
        "bert.embeddings.word",
        "bert.encoder.layer.0.a",
        "bert.encoder.layer.0.b",
        "bert.pool",
    ]
    assert learned_groups(names, "layers") == {
        "rest": ["bert.embeddings.word", "bert.pool"],
        "bert.encoder.layer.0": ["bert.encoder.layer.0.a", "bert.encoder.layer.0.b"],
    }
    assert learned_groups(names, "tensors") == {name: [name] for name in names}


class Rounded(MergeMethod):
    """Drops its coefficients out of the graph."""

    def compute(self, inputs, out=None):
        return inputs.experts[0]

    def pull_back(self, inputs, gradient):
        return torch.ones(len(inputs.experts), dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (Average(), "--optimizer.learn: Average has no coefficients to learn; try TaskArithmetic"),
        (DFMerge(), "--optimizer.learn: DFMerge weighs by a statistic of the experts, "),
        (Rounded(), "--optimizer.learn: the coefficients of Rounded cannot be learned: its gradi"),
    ],
)
def test_what_cannot_be_learned_is_refused_by_name(method, line):
    with pytest.raises(UserError) as refused:
        check_gradient(method, "--optimizer.learn")
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize(
    "method",
    [
        *(TaskArithmetic(), TIES(), DARE(), Isotropic(), FisherMerge()),
        FisherMerge(favor_target=False, normalize=False),
    ],
)
def test_what_can_be_learned_is_not(method):
    check_gradient(method, "--optimizer.learn")
