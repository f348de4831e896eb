"""The forms of per-example gradients, against gradients worked by hand."""

import pytest
import torch

from fmerge.fisher.engine.gradients import Outer, Pullback, Rows, Scattered, Summed
from fmerge.fisher.engine.sketch import Sketches
from tests.compare import assert_same


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


PARAMETER = tensor([[1, 2], [3, 4], [5, 6]]).requires_grad_()  # (3, 2)
# each form of the gradients of two examples
FORMS = {
    "outer": (
        # tokens (1, 0, 0) ⊗ (1, 2) + (0, 1, 0) ⊗ (3, 4), then twice (0, 0, 1) ⊗ (1, 1)
        Outer(
            tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]]]),
            tensor([[[1, 2], [3, 4]], [[1, 1], [1, 1]]]),
        ),
        [[[1, 2], [3, 4], [0, 0]], [[0, 0], [0, 0], [2, 2]]],
    ),
    "summed": (
        Summed(tensor([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 1]])),
        [[[1, 2], [3, 4], [5, 6]], [[0, 0], [0, 0], [0, 1]]],
    ),
    "rows": (
        Rows(torch.tensor([[2, 2], [0, 1]]), tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])),
        [[[0, 0], [0, 0], [4, 6]], [[5, 6], [7, 8], [0, 0]]],
    ),
    "scattered": (
        # the second value belongs to no entry, the first and the last to the same
        Scattered(torch.tensor([4, -1, 0, 4]), tensor([[1, 9, 2, 3], [4, 9, 5, 6]])),
        [[[2, 0], [0, 0], [4, 0]], [[5, 0], [0, 0], [10, 0]]],
    ),
    "pullback": (
        # u = θ², so that ∂u/∂θ = 2θ
        Pullback(PARAMETER.square(), torch.ones(2, 3, 2).double().cumsum(0), PARAMETER),
        [[[2, 4], [6, 8], [10, 12]], [[4, 8], [12, 16], [20, 24]]],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_gradients_and_their_total_are_those_worked_by_hand(name):
    gradients, expected = FORMS[name][0], tensor(FORMS[name][1])
    for i in range(2):
        buffer = tensor([[100, 0], [0, 0], [0, 0]])  # is added to
        gradients.add_gradient(i, buffer)
        assert_same({name: buffer - tensor([[100, 0], [0, 0], [0, 0]])}, {name: expected[i]})
    sketch = Sketches(torch.Generator().manual_seed(0)).like(PARAMETER)
    assert_same({name: gradients.total(sketch)}, {name: sketch.of(expected.sum(0))})
