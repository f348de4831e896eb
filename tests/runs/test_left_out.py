"""How ``Auto`` trains the best merge at the end."""

import pytest

from fmerge.methods import Auto, TaskArithmetic
from fmerge.modules import SpanAnswers, TextClassifier
from fmerge.runs.left_out import polishing_of
from fmerge.runs.polish_stage import Polishing

NONE = Polishing()


@pytest.mark.parametrize(
    ("labels", "module", "loss"),
    [
        ("all", TextClassifier, "both"),
        ("none", TextClassifier, "experts"),
        ("all", SpanAnswers, "labels"),
    ],
)
def test_it_learns_from_all_that_may_be_read(labels, module, loss):
    found = polishing_of(Auto(steps=7), NONE, labels, module())
    assert found == Polishing(7, loss)


def test_options_and_other_methods_have_the_last_word():
    given = Polishing(3, "entropy", 0.1, 1e-5)
    assert polishing_of(Auto(), given, "all", TextClassifier()) is given
    assert polishing_of(TaskArithmetic(), NONE, "all", TextClassifier()) is NONE
    assert polishing_of(Auto(steps=0), NONE, "all", TextClassifier()).steps == 0
