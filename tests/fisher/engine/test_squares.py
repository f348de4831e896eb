"""Sums of squared per-example gradients, in every form, against gradients that are formed."""

import pytest
import torch
from torch import nn

from fmerge.fisher.engine import squares
from fmerge.fisher.engine.gradients import Outer, Pullback, Rows, Scattered, Summed
from fmerge.fisher.engine.sketch import Sketches
from fmerge.fisher.engine.squares import add_squares
from tests.compare import assert_same

SHAPES = [(3, 1, 4, 5), (3, 6, 4, 5), (2, 3, 700, 600), (5, 2, 3000, 90)]


@pytest.mark.parametrize(("n", "t", "a", "b"), SHAPES)
@pytest.mark.parametrize(
    "forms", ["outer", "outer outer", "outer rows", "rows rows", "scattered scattered", "mixed"]
)
def test_squares_of_uses_are_those_of_explicit_gradients(n, t, a, b, forms):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parameter = normal(a, b).requires_grad_()
    made = {
        "outer": lambda: Outer(normal(n, t, a), normal(n, t, b)),
        "rows": lambda: Rows(torch.randint(a, (n, t), generator=generator), normal(n, t, b)),
        "scattered": lambda: Scattered(
            torch.randint(-1, a * b, (7,), generator=generator), normal(n, 7)
        ),
        "mixed": lambda: Pullback(parameter.sin(), normal(n, a, b), parameter),
    }
    uses = [made[name]() for name in forms.split()]
    if forms == "mixed":
        uses += [made["outer"](), made["rows"](), made["scattered"](), Summed(normal(n, a * b))]
    gradients = torch.zeros(n, a, b, dtype=torch.float64)
    for i in range(n):
        for use in uses:
            use.add_gradient(i, gradients[i])
    total, sketch = torch.zeros(a, b, dtype=torch.float64), Sketches(generator).like(parameter)
    add_squares(uses, total)
    assert_same(
        {"squares": total, "sum": sum(use.total(sketch) for use in uses)},
        {"squares": (gradients**2).sum(0), "sum": sketch.left @ gradients.sum(0) @ sketch.right.T},
    )


def test_uses_are_summed_before_the_square():
    total = torch.tensor([[10.0, 0.0]])
    left, right = torch.tensor([[[2.0]], [[3.0]]]), torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    add_squares([Outer(left, right), Outer(-left, torch.ones(2, 1, 2))], total)
    # example 0: 2·(1, 0) − 2·(1, 1) = (0, −2); example 1: 3·(1, 1) − 3·(1, 1) = 0
    assert total.tolist() == [[10.0, 4.0]]


@pytest.mark.parametrize("form", [Outer, Scattered, Pullback])
@pytest.mark.parametrize(("a", "b"), [(30, 20), (200, 100)])
def test_a_small_scratch_buffer_changes_nothing(monkeypatch, form, a, b):
    """Chunks of a single example, blocks of a few entries: the sum is the same."""
    torch.manual_seed(0)
    parameter = torch.randn(a, b, dtype=torch.float64, requires_grad=True)
    values = torch.randn(5, a, b, dtype=torch.float64)
    use = {
        Outer: lambda: Outer(values[:, :4], values[:, :4].flip(1)),
        Scattered: lambda: Scattered(torch.arange(a * b), values.flatten(1)),
        Pullback: lambda: Pullback(parameter * 3, values, parameter),
    }[form]()
    shape = (b, b) if form is Outer else (a, b)
    whole, chunked = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    add_squares([use], whole)
    monkeypatch.setattr(squares, "CACHE_BYTES", 256)
    monkeypatch.setattr(squares, "TALL", 7)
    add_squares([use], chunked)
    assert_same({"": chunked}, {"": whole})


class Alone(torch.autograd.Function):
    """Doubles; its gradient looks at numbers, so that no batch of gradients can be taken."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g if g.sum().item() > -1e9 else g


def test_a_function_that_takes_no_batches_of_gradients_is_pulled_one_by_one():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    values = torch.randn(5, 4, 3, dtype=torch.float64)
    total = torch.zeros(4, 3, dtype=torch.float64)
    add_squares([Pullback(Alone.apply(parameter), values, parameter)], total)
    assert_same({"squares": total}, {"squares": (2 * values).square().sum(0)})
