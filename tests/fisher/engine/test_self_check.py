"""What the self-check learns of rows, and what it refuses."""

import pytest
import torch
from torch import nn

from fmerge.fisher.engine.parameter_uses import covered_layers
from fmerge.fisher.engine.recorder import Recorder
from fmerge.fisher.engine.self_check import SelfCheck

N = 3


class Repeated(nn.Module):
    """Each example's row twice before a layer, in an order of choice; its mean is ℓ."""

    def __init__(self, repeat):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.repeat = nn.Linear(4, 2).double(), repeat

    def forward(self, x):
        rows = self.layer(self.repeat(x)).tanh()
        by_example = rows.view(2, N, 2).mean(0)
        if self.repeat is in_place:
            by_example = rows.view(N, 2, 2).mean(1)
        if self.repeat is mixed:
            by_example = by_example + 0.1 * by_example.flip(0)
        return by_example.log_softmax(1)


def as_a_whole(x):
    return x.repeat(2, 1)


def in_place(x):
    return x.repeat_interleave(2, 0)


def mixed(x):
    """Repeated as a whole, but each row serves two examples."""
    return x.repeat(2, 1)


def checked(repeat, row_orders):
    """One round of the check: whether something was learnt, and which parameters differ."""
    model = Repeated(repeat)
    names = {parameter: name for name, parameter in model.named_parameters()}
    x = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check = SelfCheck(N, row_orders)
    check.differentiate(model(x), list(names))
    recorder = Recorder(covered_layers(model, names), names, N, row_orders)
    with recorder.record():
        values = recorder.forward(model, x)
        unseen, leaves = recorder.unseen(values)
        learnt, differing = check.compare_gradients(recorder, values, leaves)
    return learnt, [names[p] for p in differing], [names[p] for p in unseen], recorder


@pytest.mark.parametrize(
    ("repeat", "orders"),
    [
        (in_place, {}),  # example-major, as is assumed
        (as_a_whole, {"layer#1": "interleaved"}),
        # neither the layer nor the function that it then calls by itself
        (mixed, {"layer#1": "none", "linear(layer.weight, layer.bias)#1": "none"}),
    ],
)
def test_row_orders_are_found_by_numbers(repeat, orders):
    found = {}
    for round_, _ in enumerate([*orders, None]):
        learnt, differing, unseen, recorder = checked(repeat, found)
        assert learnt == (round_ < len(orders)) and (not unseen or repeat is mixed)
        # the sum over all examples has every row once, in any order
        assert not differing or (repeat is mixed and not learnt)
    learnt, differing, unseen, recorder = checked(repeat, found)
    assert found == orders and not learnt
    assert not differing or repeat is mixed
    # a use whose rows belong to no example is left to autograd, which finds the parameters
    recorded = [use.row_order for use in recorder.layer_uses]
    assert recorded == ([] if repeat is mixed else [orders.get("layer#1", "example-major")])
    assert sorted(unseen) == (["layer.bias", "layer.weight"] if repeat is mixed else [])


def test_other_values_a_second_time_are_refused():
    check, values = SelfCheck(2, {}), torch.tensor([[0.5], [1.0]])
    check.compare_values(values, values.clone())
    for other in (values + 0.1, values[:1], values * torch.nan):
        with pytest.raises(ValueError, match="other values for the same batch a second time"):
            check.compare_values(values, other)
