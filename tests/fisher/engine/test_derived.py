"""Gradients of views of a parameter, and of what is computed from it."""

import torch
from torch import nn

from fmerge.fisher.engine.derived import Part, Through, placed
from fmerge.fisher.engine.gradients import Outer, Summed
from fmerge.fisher.engine.sketch import Sketch
from fmerge.fisher.engine.squares import add_squares

N, T = 3, 4


def outer(rows, columns):
    torch.manual_seed(rows)
    return Outer(torch.randn(N, T, rows), torch.randn(N, T, columns))


def each(form, shape):
    gradients = torch.zeros(N, *shape)
    for n in range(N):
        form.add_gradient(n, gradients[n])
    return gradients


def squares(uses, shape):
    total = torch.zeros(shape)
    add_squares(uses, total)
    return total


def test_each_view_gets_the_cheapest_form_and_the_right_place():
    theta = nn.Parameter(torch.randn(6, 5))
    own = outer(6, 5)
    assert placed(own, theta, theta) is own
    turned = placed(outer(5, 6), theta.T, theta)
    assert isinstance(turned, Outer) and turned.left.shape[-1] == 6
    part = placed(outer(2, 5), theta[1:3], theta)
    assert isinstance(part, Part) and (part.start, part.stop) == (1, 3)
    assert not each(part, theta.shape)[:, 3:].any()
    torch.testing.assert_close(each(part, theta.shape)[:, 1:3], each(part.own, (2, 5)))
    for u in (theta[:, 1:3], theta * 2, theta.double(), theta[::2]):
        assert isinstance(placed(outer(*u.shape), u, theta), Through)
    through = placed(outer(6, 2), theta[:, 1:3], theta)
    torch.testing.assert_close(each(through, theta.shape)[:, :, 1:3], each(through.own, (6, 2)))


def test_squares_are_of_the_sum_over_uses():
    theta = nn.Parameter(torch.randn(6, 5))
    shape = theta.shape
    top, middle = (placed(outer(3, 5), theta[s : s + 3], theta) for s in (0, 2))
    bottom = placed(outer(3, 5), theta[3:], theta)
    vector = placed(Summed(torch.randn(N, 5)), theta[4], theta)
    tripled = placed(outer(6, 5), 3 * theta, theta)
    for uses in (
        [top, bottom],
        [top, top, bottom],
        [top, middle],
        [vector, bottom],
        [tripled, top],
    ):
        expected = sum(each(use, shape) for use in uses).square().sum(0)
        torch.testing.assert_close(squares(uses, shape), expected)
    sketch = Sketch(torch.randn(8, 6), torch.randn(8, 5))
    for use in (top, tripled, vector):
        torch.testing.assert_close(use.total(sketch), sketch.of(each(use, shape).sum(0)))
