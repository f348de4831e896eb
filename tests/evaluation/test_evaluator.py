"""Passes over tasks of a few sentences, against plain loops over single examples."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from sklearn.metrics import f1_score
from torch import nn

from fmerge.data import BLOCKS
from fmerge.evaluation.evaluator import by_accuracy, mean, silent
from fmerge.evaluation.passes import Pass
from fmerge.fisher import FisherSettings
from fmerge.modules import TextClassifier
from fmerge.params import params_of
from tests import oracle, tiny
from tests.compare import assert_same
from tests.evaluation.tiny_tasks import make_evaluator, models


@pytest.fixture(scope="module")
def evaluator():
    return make_evaluator()


@pytest.fixture(scope="module")
def bodies():
    return {name: TextClassifier().body(model) for name, model in models().items()}


def network(evaluator, task, body):
    """A copy of a task's network with a body."""
    model = deepcopy(evaluator.module.task_model(task)).eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in body.items():
            own[name].copy_(value)
    return model


def log_probs(model, example):
    tokens = tiny.tokenizer()(example["text"], return_tensors="pt")
    return model(**tokens).logits.log_softmax(1)


def predictions(model, examples):
    with torch.no_grad():
        return [int(log_probs(model, example).argmax()) for example in examples]


def test_a_body_is_written_into_the_live_module_under_all_heads(evaluator, bodies):
    heads = {
        task: {n: t.clone() for n, t in params_of(evaluator.module.task_model(task)).items()
               if n not in bodies[task]}
        for task in bodies
    }  # fmt: skip
    for body in bodies.values():
        evaluator.write_body(body)
        for task, head in heads.items():
            assert_same(params_of(evaluator.module.task_model(task)), {**body, **head})


def test_a_module_without_a_shared_body_takes_none(evaluator):
    other = type("Plain", (LightningModule,), {})()
    alone = SimpleNamespace(module=other)
    with pytest.raises(TypeError, match="Plain is no TaskModule: it shares no body"):
        type(evaluator).write_body(alone, {})


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_score_is_the_mean_of_a_tasks_metrics(evaluator, bodies, split):
    body = bodies["colour"]
    found = evaluator.score(body, split, ["animal", "colour"])
    assert list(found) == ["animal", "colour"]
    expected = {}
    for task in found:
        examples = evaluator.data.tasks[task].examples(split)
        answers = predictions(network(evaluator, task, body), examples)
        labels = [example["label"] for example in examples]
        right = sum(a == b for a, b in zip(answers, labels, strict=True)) / len(labels)
        expected[task] = right
        if task == "animal":
            expected[task] = (right + f1_score(labels, answers)) / 2
    assert found == pytest.approx(expected, rel=1e-6)
    # one after the other and again: no score leaks into the next
    assert evaluator.score(body, split, ["animal"]) == {"animal": found["animal"]}
    assert evaluator.score(body, split, ["animal", "colour"]) == found


def test_right_answers_are_in_the_order_of_the_block(evaluator, bodies):
    body = bodies["animal"]
    evaluator.write_body(body)
    seen, scored = [], 0
    for block in range(BLOCKS):
        found = evaluator.right_answers(evaluator.module, "validation", ["animal"], block)
        loaders = evaluator.data.loaders("validation", ["animal"], block=block)
        assert list(found) == list(loaders)  # nothing of an empty block
        if not loaders:
            continue
        examples = list(loaders["animal"].dataset)
        answers = predictions(network(evaluator, "animal", body), examples)
        labels = [example["label"] for example in examples]
        assert found["animal"] == [a == b for a, b in zip(answers, labels, strict=True)]
        seen, scored = seen + [example["text"] for example in examples], scored + 1
    whole = [one["text"] for one in evaluator.data.tasks["animal"].examples("validation")]
    assert scored == 2 and sorted(seen) == sorted(whole)
    assert evaluator.module.right is None


def test_answers_do_not_depend_on_the_batches(evaluator, bodies):
    other = make_evaluator(batch_size=7)
    for one in (evaluator, other):
        one.write_body(bodies["colour"])
    both = [e.right_answers(e.module, "validation", ["colour"], 0) for e in (evaluator, other)]
    assert both[0] == both[1] and len(both[0]["colour"]) >= 16


def test_recording_ends_with_the_pass_also_when_it_fails(evaluator, monkeypatch):
    def fail(*args, **options):
        raise KeyError("a bug")

    monkeypatch.setattr(evaluator.trainer, "validate", fail)
    with pytest.raises(KeyError, match="a bug"):
        evaluator.right_answers(evaluator.module, "validation", ["colour"], 0)
    assert evaluator.module.right is None


def test_passes_are_counted_by_what_they_cost(bodies):
    one, body = make_evaluator(), bodies["colour"]
    assert not one.made
    one.score(body, "validation", ["colour", "animal"])
    one.score(body, "validation", ["colour"])
    one.fisher("animal", FisherSettings(split="train", examples=3), body)
    one.grams("animal", FisherSettings(split="test", examples=100), body)
    one.note("score", "train", ["colour"], 5)
    assert one.made == {
        Pass("score", "colour", "validation", 40): 2,
        Pass("score", "animal", "validation", 40): 1,
        Pass("Fisher", "animal", "train", 3): 1,
        Pass("score", "animal", "test", 7): 1,  # no more than there are
        Pass("score", "colour", "train", 5): 1,
    }


def test_errors_are_binomial_and_of_accuracies_alone(evaluator):
    found = evaluator.errors({"colour": 0.2, "animal": 0.5}, "validation")
    assert found == pytest.approx({"colour": (0.2 * 0.8 / 40) ** 0.5})
    assert by_accuracy(evaluator.data, "colour") and not by_accuracy(evaluator.data, "animal")


def test_a_fisher_is_its_definition(evaluator, bodies):
    settings, body = FisherSettings(split="train", examples=5, seed=3), bodies["colour"]
    estimate = evaluator.fisher("animal", settings, body)
    chosen = evaluator.data.choose("animal", "train", 5, 3)
    exact = network(evaluator, "animal", body).double()
    expected, n = oracle.fisher(
        exact, chosen, lambda one: log_probs(exact, one), lambda ell, n: ell.exp()
    )
    assert n == 5
    assert_same(estimate.values, expected, rtol=1e-3, atol=1e-6)
    # at the present weights, and by the label: another body has no say
    labelled = evaluator.fisher(
        "animal", FisherSettings(split="train", examples=5, seed=3, estimator="empirical")
    )
    truth, _ = oracle.fisher(
        exact, chosen, lambda one: log_probs(exact, one),
        lambda ell, n: nn.functional.one_hot(torch.tensor(chosen[n]["label"]), 2),
    )  # fmt: skip
    assert_same(labelled.values, truth, rtol=1e-3, atol=1e-6)


def test_a_second_fisher_starts_from_zero(evaluator, bodies):
    settings = FisherSettings(split="train", examples=4)
    first = {k: v.clone() for k, v in evaluator.fisher("colour", settings, bodies["colour"])
             .values.items()}  # fmt: skip
    evaluator.fisher("colour", settings, bodies["animal"])
    assert_same(evaluator.fisher("colour", settings, bodies["colour"]).values, first)


def test_grams_are_sums_of_outer_products(evaluator, bodies):
    settings, body = FisherSettings(split="train", examples=5, seed=1), bodies["animal"]
    grams = evaluator.grams("animal", settings, body)
    model, sums = network(evaluator, "animal", body), {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and f"{name}.weight" in body:

            def add(layer, inputs, output, key=f"{name}.weight"):
                rows = inputs[0].detach().flatten(0, -2)
                sums[key] = sums.get(key, 0) + sum(torch.outer(row, row) for row in rows)

            layer.register_forward_hook(add)
    chosen = evaluator.data.choose("animal", "train", 5, 1)
    for example in chosen:
        model(**tiny.tokenizer()(example["text"], return_tensors="pt"))
    assert_same({name: gram.matrix for name, gram in grams.items()}, sums, rtol=1e-4, atol=1e-4)


def test_the_bar_is_hidden_during_a_pass_and_shown_again():
    events = []
    bar = SimpleNamespace(disable=lambda: events.append("off"), enable=lambda: events.append("on"))
    with pytest.raises(KeyError), silent(SimpleNamespace(progress_bar_callback=bar)):
        assert events == ["off"]
        raise KeyError
    assert events == ["off", "on"]
    for trainer, on in ((SimpleNamespace(progress_bar_callback=bar), False),
                        (SimpleNamespace(progress_bar_callback=None), True)):  # fmt: skip
        with silent(trainer, on):
            pass
    assert events == ["off", "on"]


def test_a_mean_of_scores():
    assert mean({"a": 0.25, "b": 0.5, "c": 0.75}) == 0.5


def test_a_parameter_that_is_never_trained_has_a_fisher_of_zero(evaluator, bodies):
    settings, other = FisherSettings(examples=4), make_evaluator()
    before = evaluator.fisher("colour", settings, bodies["colour"]).values
    name = "bert.embeddings.position_embeddings.weight"
    # as architectures do that have a fixed initial state
    dict(other.module.task_model("colour").named_parameters())[name].requires_grad_(False)
    after = other.fisher("colour", settings, bodies["colour"]).values
    assert before[name].any() and not after[name].any() and after[name].dtype == torch.float32
    assert_same(after, {**before, name: torch.zeros_like(before[name])})
