"""What needs labels is refused where none may be read."""

import pytest

import fmerge
from fmerge.errors import UserError
from fmerge.evaluation.head_refit import Refitting
from fmerge.fisher import FisherSettings
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.modules import SpanAnswers, TextClassifier
from fmerge.runs.labels import Asked, label_facts
from fmerge.runs.polish_stage import Polishing


def asked(optimizer=None, polishing=Polishing(), refitting=Refitting(), fisher=FisherSettings()):  # noqa: B008
    return Asked(optimizer or MergeOptimizer(), polishing, refitting, fisher)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (asked(polishing=Polishing(5, "both")), "--polish_loss both"),
        (asked(refitting=Refitting("trials")), "--refit_heads trials"),
        (asked(fisher=FisherSettings(estimator="empirical")), "--fisher.estimator empirical"),
        (asked(MergeOptimizer(learn="layers", loss="labels")), "--optimizer.loss labels"),
        (asked(MergeOptimizer(racing=True)), "--optimizer.racing true"),
    ],
)
def test_it_is_named(given, message):
    with pytest.raises(UserError, match=f"{message}: needs labels, but --labels is none; leave"):
        given.check("none", TextClassifier())
    given.check("all", TextClassifier())


def test_what_needs_none_is_not():
    asked(MergeOptimizer(learn="layers", loss="experts")).check("none", TextClassifier())
    asked(MergeOptimizer(loss="labels")).check("none", TextClassifier())  # nothing is learned


def test_answers_that_are_not_listed_cannot_be_compared():
    with pytest.raises(UserError, match="--labels: is none, which compares .* but SpanAnswers"):
        asked().check("none", SpanAnswers())
    with pytest.raises(UserError, match="--labels: is 'few', but must be all or none"):
        asked().check("few", fmerge.modules.TextClassifier())


def test_it_is_said():
    assert label_facts("all") == [] and "exp(−KL)" in label_facts("none")[0]
