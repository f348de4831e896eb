"""One recorded forward pass: what it sees, what it leaves as it was."""

import pytest
import torch
from torch import nn

from fmerge.fisher.engine.parameter_uses import covered_layers
from fmerge.fisher.engine.recorder import Recorder

N = 2


class Twice(nn.Module):
    """A layer that is called twice; a bias that all examples share; a weight that is also read."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.read = nn.Linear(3, 3)
        self.shift = nn.Parameter(torch.ones(3))

    def forward(self, x):
        hidden = self.layer(self.layer(x)) + self.shift
        seen = torch.einsum("nti,oi->nto", hidden, self.read.weight)  # no rule knows it
        return (seen + self.read(hidden)).sum(1)


@pytest.fixture
def recorder():
    torch.manual_seed(0)
    model = Twice()
    names = {parameter: name for name, parameter in model.named_parameters()}
    recorder = Recorder(covered_layers(model, names), names, N, {})
    with recorder.record():
        values = recorder.forward(model, torch.randn(N, 4, 3))
        yield recorder, values, model
    assert not any("forward" in vars(module) for module in model.modules())


def test_uses_are_recorded_in_order_and_an_unseen_one_is_named(recorder):
    recorder, values, model = recorder
    assert recorder.structure() == (
        ("layer#1", "example-major", 1, 3),
        ("layer#2", "example-major", 1, 3),
        ("read#1", "example-major", 1, 3),
        ("source#1", "example-major", 1, 3),
    )
    assert recorder.tensor_uses[0].parameters == [model.shift]
    unseen, leaves = recorder.unseen(values)
    assert [recorder.names[parameter] for parameter in unseen] == ["read.weight"]
    assert any(leaf is recorder.tensor_uses[0].leaf for leaf in leaves)


def test_a_parameter_is_finished_once_with_all_its_uses(recorder):
    recorder, values, model = recorder
    finished, observed = {}, []

    def finish(parameter, uses):
        assert parameter not in finished
        finished[parameter] = len(uses)

    leaves = recorder.unseen(values)[1]
    recorder.backward(
        values,
        leaves,
        torch.ones_like(values),
        retain_graph=False,
        finish=finish,
        observe=lambda key, g: observed.append((key, tuple(g.shape))),
    )
    counts = {recorder.names[parameter]: count for parameter, count in finished.items()}
    assert counts == {
        "layer.weight": 2,
        "layer.bias": 2,
        "read.weight": 1,
        "read.bias": 1,
        "shift": 1,
    }
    keys = [key for key, _ in observed]
    assert keys == ["read#1", "layer#2", "layer#1", "source#1"]
    assert all(use.x.numel() == 0 for use in recorder.layer_uses)  # inputs are freed
