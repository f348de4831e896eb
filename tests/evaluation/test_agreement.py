"""Scores without labels, against a loop over single examples."""

import math

import pytest
import torch

from fmerge.evaluation.agreement import Agreement
from fmerge.modules import TextClassifier
from fmerge.params import using_params
from tests import tiny
from tests.evaluation.tiny_tasks import make_evaluator, models


def probabilities(model, text):
    with torch.no_grad():
        return model(**tiny.tokenizer()(text, return_tensors="pt")).logits.double().softmax(1)[0]


def test_it_is_the_mean_divergence_from_each_task_s_expert():
    evaluator = make_evaluator()
    bodies = {name: TextClassifier().body(model) for name, model in models().items()}
    tasks, one = list(bodies), Agreement(evaluator)
    one.ask(bodies)
    network = evaluator.module.task_model
    expected = {}
    for task in tasks:
        found = []
        for example in evaluator.data.tasks[task].examples("validation"):
            with using_params(network(task), bodies[task]):
                p = probabilities(network(task).eval(), example["text"])
            with using_params(network(task), bodies[tasks[0]]):
                q = probabilities(network(task).eval(), example["text"])
            found.append(float((p * (p.log() - q.log())).sum()))
        expected[task] = math.exp(-sum(found) / len(found))
    assert one.score(bodies[tasks[0]], tasks) == pytest.approx(expected, rel=1e-5)
    assert expected[tasks[0]] == 1.0 and expected[tasks[1]] < 1.0
