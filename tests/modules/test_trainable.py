"""Models that cannot be differentiated are refused by name."""

from types import SimpleNamespace

import pytest
from torch import nn

from fmerge.errors import UserError
from fmerge.modules.trainable import check_trainable


def network(model_type):
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type=model_type)
    return model


def test_a_model_without_gradients_outside_of_training_is_refused():
    message = "^task 'a': a reformer can be neither fine-tuned nor given a Fisher.*RegMean$"
    with pytest.raises(UserError, match=message):
        check_trainable(network("reformer"), "a")


@pytest.mark.parametrize("model", [network("bert"), nn.Linear(2, 2)])
def test_every_other_model_is_let_through(model):
    check_trainable(model, "a")
