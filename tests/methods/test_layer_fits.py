"""Closed fits of layers, on numbers computed by hand and against least squares over rows."""

import pytest
import torch

from fmerge.methods.layer_fits import (
    Affine,
    ChannelMoments,
    LinearFit,
    Means,
    Moments,
    fit_affine,
    fit_bias,
)

F64 = torch.float64


def moments(x, y=None):
    second = x.T @ x
    return Moments(second, second if y is None else x.T @ y, float(len(x)))


def test_a_weight_by_hand():
    """One input: w = (0.5·6·2 + 1·1·4 + 2·5) / (0.5·4 + 1·2 + 2)."""
    fit = LinearFit(torch.tensor([[3.0]]))
    fit.add(torch.tensor([[2.0]]), Moments(torch.tensor([[4.0]]), torch.tensor([[6.0]]), 1), 0.5)
    fit.add(torch.tensor([[4.0]]), Moments(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 1), 1.0)
    found = fit.solve(2.0, torch.tensor([[5.0]]))
    assert found.dtype == F64 and found.item() == pytest.approx(20 / 6, rel=1e-12)


def test_a_weight_is_least_squares_over_the_rows():
    torch.manual_seed(0)
    start, own = torch.randn(2, 3, dtype=F64), torch.randn(2, 2, 3, dtype=F64)
    x = torch.randn(2, 9, 3, dtype=F64)
    fit = LinearFit(start)
    for weight, rows in zip(own, x, strict=True):
        fit.add(weight, moments(rows), 1.0)
    outputs = torch.cat([rows @ weight.T for weight, rows in zip(own, x, strict=True)])
    expected = torch.linalg.lstsq(x.flatten(0, 1), outputs).solution.T
    torch.testing.assert_close(fit.solve(), expected, rtol=1e-5, atol=1e-5)  # but for the ridge


def test_the_off_diagonal_is_shrunk():
    x = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=F64)
    fit = LinearFit(torch.zeros(1, 2, dtype=F64), off_diagonal=0.0)
    fit.add(torch.tensor([[1.0, 0.0]], dtype=F64), moments(x), 1.0)
    fit.add(torch.tensor([[0.0, 2.0]], dtype=F64), moments(2 * x), 1.0)
    # every input by itself: (1·1 + 0·4) / 5 and (0·2 + 2·8) / 10
    torch.testing.assert_close(
        fit.solve(), torch.tensor([[0.2, 1.6]], dtype=F64), rtol=1e-5, atol=0
    )


def test_the_start_decides_where_there_are_no_inputs():
    start = torch.tensor([[3.0, 7.0]])
    fit = LinearFit(start)
    assert fit.solve().equal(start.double())
    fit.add(torch.tensor([[5.0, 9.0]]), moments(torch.tensor([[2.0, 0.0]])), 1.0)
    torch.testing.assert_close(
        fit.solve(), torch.tensor([[5.0, 7.0]], dtype=F64), rtol=1e-5, atol=0
    )


def test_experts_with_the_weight_of_the_start_change_nothing():
    torch.manual_seed(0)
    start, x = torch.randn(2, 4), torch.randn(3, 4)  # fewer rows than inputs
    fit = LinearFit(start)
    for _ in range(2):
        fit.add(start, moments(x), 0.7)
    assert fit.solve().equal(start.double())


def test_a_bias_by_hand():
    weight, own = torch.tensor([[2.0]]), [torch.tensor([[3.0]]), torch.tensor([[1.0]])]
    means = [
        Means(torch.tensor([1.0]), torch.tensor([2.0])),
        Means(torch.tensor([3.0]), torch.tensor([4.0])),
    ]
    found = fit_bias(weight, own, [torch.tensor([10.0]), torch.tensor([20.0])], means)
    assert found.item() == ((3 * 2 + 10 - 2 * 1) + (1 * 4 + 20 - 2 * 3)) / 2


def test_gain_and_shift_are_least_squares_over_the_rows():
    torch.manual_seed(0)
    z = torch.randn(2, 8, 3, dtype=F64)
    start, anchor, *experts = (Affine(*torch.randn(2, 3, dtype=F64)) for _ in range(4))
    found = fit_affine(
        start,
        experts,
        [ChannelMoments(one.mean(0), one.square().mean(0)) for one in z],
        0.3,
        anchor,
    )
    for i in range(3):
        rows = torch.stack([z[:, :, i].flatten(), torch.ones(16)], dim=1) / 8**0.5
        own = [one.gain[i] * z[m, :, i] + one.shift[i] for m, one in enumerate(experts)]
        table = torch.cat([rows, 0.3**0.5 * torch.eye(2, dtype=F64)])
        pull = 0.3**0.5 * torch.stack([anchor.gain[i], anchor.shift[i]])
        values = torch.cat([torch.cat(own) / 8**0.5, pull])
        expected = torch.linalg.lstsq(table, values[:, None]).solution[:, 0]
        torch.testing.assert_close(torch.stack([found.gain[i], found.shift[i]]), expected)


def test_a_gain_alone_by_hand():
    """γ = (Σ E[z²]γₘ + rA) / (Σ E[z²] + r), whatever the mean of z."""
    seen = [ChannelMoments(torch.tensor([9.0]), torch.tensor([c])) for c in (1.0, 3.0)]
    experts = [Affine(torch.tensor([2.0])), Affine(torch.tensor([4.0]))]
    found = fit_affine(Affine(torch.tensor([1.0])), experts, seen, 1.0, Affine(torch.tensor([6.0])))
    assert found.shift is None and found.gain.item() == pytest.approx((2 + 12 + 6) / 5)


def test_a_channel_that_is_always_zero_stays_the_starts():
    start = Affine(torch.tensor([5.0]), torch.tensor([1.0]))
    expert = Affine(torch.tensor([7.0]), torch.tensor([3.0]))
    found = fit_affine(start, [expert], [ChannelMoments(torch.zeros(1), torch.zeros(1))])
    assert found.gain.item() == 5 and found.shift.item() == pytest.approx(3, rel=1e-5)
