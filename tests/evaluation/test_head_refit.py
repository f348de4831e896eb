"""Refitted heads: where they can be, and that they are scikit-learn's."""

from types import SimpleNamespace

import numpy
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.evaluation.head_refit import Refitter, Refitting, check_refitting, obstacle
from fmerge.evaluation.passes import Pass
from fmerge.modules import TextClassifier
from fmerge.modules.logistic import STRENGTH
from fmerge.params import fingerprint, params_of
from fmerge.store import LabelNames
from tests import tiny
from tests.evaluation.tiny_tasks import Given, examples, make_evaluator, models

OFF = Refitting()


def data_of(labels, train=()):
    return MultiTask({"x": Given(labels, train=list(train))})


def classifier(labels=("p", "q")):
    return {"x": tiny.classifier(tiny.bert_config(labels))}


def labelled(*labels):
    return [{"text": "red", "label": label} for label in labels]


def test_settings():
    assert not OFF.wanted and OFF.most is None  # all examples for the baseline
    assert Refitting("end", 9).wanted and Refitting("trials", 9).most == 9
    assert Refitting("end", None).most is None
    with pytest.raises(UserError, match="--refit_examples: is 1, but two classes need at least 2"):
        Refitting("end", 1)


def test_obstacles():
    module = TextClassifier()
    assert obstacle(module, None, {}) == "there are no data (--data) to refit heads on"
    assert obstacle(module, data_of(["p", "q"]), classifier()) == ""
    for labels in ([], ["score"], LabelNames("pq", "labels"), LabelNames("pq", "tags")):
        assert obstacle(module, data_of(labels), classifier()) == "task 'x' has no classes"
    assert obstacle(object(), data_of(["p", "q"]), classifier()) == "task 'x' has no classes"
    reason = "the head of task 'x' does not end in a linear layer of 3 outputs"
    assert obstacle(module, data_of(list("pqr")), classifier()) == reason
    bare = nn.Module()
    bare.body = nn.Linear(2, 3)
    bare.base_model_prefix = "body"
    assert obstacle(module, data_of(list("pqr")), {"x": bare}) == reason


def check(settings, data, models, reference=False):
    check_refitting(settings, TextClassifier(), data, models, reference)


def test_heads_that_are_wanted_and_cannot_be_refitted_are_refused():
    with pytest.raises(UserError) as refused:
        check(Refitting("trials"), data_of(["score"]), classifier())
    expected = "--refit_heads: is trials, but task 'x' has no classes; leave it off"
    assert str(refused.value) == expected
    with pytest.raises(UserError, match="is end, but there are no data"):
        check(Refitting("end"), None, classifier())
    check(OFF, None, classifier(), reference=True)  # the baseline is left out
    check(OFF, data_of(["score"]), classifier(), reference=True)


@pytest.mark.parametrize(
    ("settings", "option", "other"),
    [
        (Refitting("end"), "--refit_examples", "--refit_heads off"),
        (OFF, "--baselines", "--baselines experts"),
    ],
)
def test_examples_of_one_class_are_refused(settings, option, other):
    with pytest.raises(UserError) as refused:
        check(settings, data_of(["p", "q"], labelled(1, 1, 1)), classifier(), reference=True)
    assert str(refused.value) == (
        f"{option}: the 3 training examples of task 'x' are all of one class, to which no head "
        f"can be refitted; take more, of p, q, or {other}"
    )
    # nothing is read where nothing will be refitted
    check(OFF, data_of(["p", "q"], labelled(1, 1, 1)), classifier())


def test_a_class_without_examples_is_named(caplog):
    data = data_of(list("pqr"), labelled(0, 2, 0, 2))
    check(Refitting("end"), data, classifier(("p", "q", "r")))
    assert caplog.messages == [
        "a refitted head of 'x' will never answer q, which none of the 4 training examples is "
        "of; --refit_examples may take more"
    ]
    caplog.clear()
    check(Refitting("end"), data_of(["p", "q"], labelled(0, 1)), classifier())
    assert caplog.messages == []


@pytest.fixture(scope="module")
def evaluator():
    return make_evaluator()


@pytest.fixture(scope="module")
def body():
    return TextClassifier().body(models()["colour"])


def features(evaluator, task, body, some):
    """What enters the last layer, by transformers alone; a fine network holds the body."""
    model = tiny.classifier(tiny.bert_config(tiny.LABELS[task]))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in body.items():
            own[name].copy_(value)
        texts = [tiny.tokenizer()(one["text"], return_tensors="pt") for one in some]
        return torch.cat([model.bert(**one).pooler_output for one in texts]).double().numpy()


def test_fitted_heads_are_scikit_learns(evaluator, body):
    settings = Refitting("end", examples=9, seed=4)
    before = {t: fingerprint(params_of(evaluator.module.task_model(t))) for t in tiny.LABELS}
    made = evaluator.made.copy()
    heads = Refitter(evaluator, settings, ["colour", "animal"]).fit(body)
    assert list(heads) == ["colour", "animal"]
    for task, head in heads.items():
        some = evaluator.data.choose(task, "train", 9, 4)
        pipeline = make_pipeline(
            StandardScaler(), LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=5000)
        )
        x = features(evaluator, task, body, some)
        pipeline.fit(x, [one["label"] for one in some])
        weight, bias = head["classifier.weight"], head["classifier.bias"]
        assert weight.dtype == bias.dtype == torch.float32 and set(head) == {
            "classifier.weight",
            "classifier.bias",
        }
        found = torch.from_numpy(x) @ weight.double().T + bias.double()
        expected = pipeline.predict_proba(x)
        numpy.testing.assert_allclose(found.softmax(1).numpy(), expected, atol=1e-4)
    new = evaluator.made - made
    assert new == {Pass("score", task, "train", 9): 1 for task in heads}
    # the live module has the body, and its own heads still
    evaluator.write_body(TextClassifier().body(models()["colour"]))
    after = {t: fingerprint(params_of(evaluator.module.task_model(t))) for t in tiny.LABELS}
    assert after == before


def test_scores_are_those_of_the_refitted_heads_which_are_then_given_back(evaluator, body):
    refitter = Refitter(evaluator, Refitting("end"), ["colour"])
    heads = refitter.fit(body)
    own = params_of(evaluator.module.task_model("colour"))["classifier.weight"].clone()
    found = refitter.score(body, "test", heads)
    some = evaluator.data.tasks["colour"].examples("test")
    x = torch.from_numpy(features(evaluator, "colour", body, some))
    head = {name: tensor.double() for name, tensor in heads["colour"].items()}
    answers = (x @ head["classifier.weight"].T + head["classifier.bias"]).argmax(1).tolist()
    right = [answer == one["label"] for answer, one in zip(answers, some, strict=True)]
    assert found == pytest.approx({"colour": sum(right) / 7})
    # heads that always answer one class score the share of that class
    shares = [sum(one["label"] == k for one in some) / 7 for k in range(3)]
    for k, share in enumerate(shares):
        constant = {name: torch.zeros_like(tensor) for name, tensor in heads["colour"].items()}
        constant["classifier.bias"][k] = 1.0
        scored = refitter.score(body, "test", {"colour": constant})
        assert scored == pytest.approx({"colour": share})
    assert len(set(shares)) > 1
    now = params_of(evaluator.module.task_model("colour"))["classifier.weight"]
    assert torch.equal(now, own)


def test_heads_are_given_back_after_an_error(evaluator, body):
    refitter = Refitter(evaluator, Refitting("end"), ["animal"])
    own = params_of(evaluator.module.task_model("animal"))["classifier.bias"].clone()
    with pytest.raises(KeyError), refitter.fitted(body):
        live = params_of(evaluator.module.task_model("animal"))
        assert not torch.equal(live["classifier.bias"], own)
        assert torch.equal(live["bert.pooler.dense.bias"], body["bert.pooler.dense.bias"])
        raise KeyError
    now = params_of(evaluator.module.task_model("animal"))["classifier.bias"]
    assert torch.equal(now, own)


def test_what_cannot_be_fitted_names_its_task(body):
    one = make_evaluator()
    one.data.tasks["animal"].splits["train"] = [
        {**example, "label": 1} for example in examples(6, 2, 0)
    ]
    with pytest.raises(UserError, match="task 'animal': a head cannot be refitted: its examples"):
        Refitter(one, OFF, ["animal"]).fit(body)


def test_a_module_without_classes_has_no_refitter():
    evaluator = SimpleNamespace(module=nn.Linear(1, 1))
    with pytest.raises(TypeError, match="Linear is no Classifier"):
        Refitter(evaluator, OFF, ["x"])
