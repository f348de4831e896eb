"""Confidence intervals against scipy's and against cases worked by hand."""

import math

import pytest
import torch
from scipy import stats

from fmerge.modules.metrics import make_metric
from fmerge.report.confidence import Estimate, mean_over_tasks, normal, paired, resampled, wilson


@pytest.mark.parametrize(("right", "examples"), [(0, 5), (3, 11), (50, 100), (297, 480), (7, 7)])
def test_the_interval_of_a_share_is_scipys(right, examples):
    found = wilson(right / examples, examples)
    expected = stats.binomtest(right, examples).proportion_ci(0.95, method="wilson")
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.error > 0


def test_many_examples_have_the_binomial_error():
    assert wilson(0.3, 100_000).error == pytest.approx(math.sqrt(0.3 * 0.7 / 100_000), rel=1e-2)


def test_a_paired_difference_worked_by_hand():
    # d = 0, 1, 0, 1: mean 1/2, variance 1/3, standard error √(1/12)
    found = paired(torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 0, 0]))
    half = 1.959963985 * math.sqrt(1 / 12)
    assert found.ends() == pytest.approx([0.5, 0.5 - half, 0.5 + half])
    assert not found.decided  # 0.5 - 0.566


def test_a_paired_difference_is_scipys():
    one, other = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)).round()
    difference = (one - other).double().numpy()
    expected = stats.norm.interval(0.95, difference.mean(), stats.sem(difference))
    found = paired(one, other)
    assert [found.low, found.high] == pytest.approx(expected)
    swapped = paired(other, one)
    assert swapped.ends() == pytest.approx([-found.value, -found.high, -found.low])


def test_what_is_the_same_differs_by_nothing_and_one_example_tells_nothing():
    right = torch.tensor([1.0, 0.0, 1.0])
    assert paired(right, right).ends() == [0, 0, 0]
    assert paired(right[:1], right[1:2]) is None


def test_the_mean_over_tasks_worked_by_hand():
    # √(0.03² + 0.04²) / 2 = 0.025
    found = mean_over_tasks([normal(0.1, 0.03), normal(0.3, 0.04)])
    half = 1.959963985 * 0.025
    assert found.ends() == pytest.approx([0.2, 0.2 - half, 0.2 + half])
    assert found.error == pytest.approx(0.025) and found.decided
    assert mean_over_tasks([normal(0.1, 0.03), None]) is None and mean_over_tasks([]) is None


@pytest.mark.parametrize(("low", "high", "decided"), [(-1, 2, False), (0, 2, False), (1, 2, True)])
def test_an_interval_decides_that_leaves_out_zero(low, high, decided):
    assert Estimate(0.5, low, high, 1.0).decided == decided
    assert Estimate(-0.5, -high, -low, 1.0).decided == decided


def test_resamples_are_the_same_for_every_statistic():
    generator = torch.Generator().manual_seed(3)
    one, other = torch.rand(2, 50, generator=generator, dtype=torch.float64)
    draws = [
        resampled(lambda chosen, it=it: float(it[chosen].mean()), 50, draws=60)
        for it in (one, other, one - other)
    ]
    torch.testing.assert_close(draws[0] - draws[1], draws[2])
    again = resampled(lambda chosen: float(one[chosen].mean()), 50, draws=60)
    assert torch.equal(again, draws[0])
    assert not torch.equal(resampled(lambda c: float(one[c].mean()), 50, 60, seed=1), draws[0])


def test_a_paired_bootstrap_of_f1_is_scipys():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(150, generator=generator) < 0.4).long()
    flips = torch.rand(2, 150, generator=generator) < torch.tensor([[0.1], [0.25]])
    one, other = labels ^ flips.long()
    metric = make_metric("f1", 2)

    def f1(predictions, truth) -> float:
        metric.reset()
        metric.update(torch.as_tensor(predictions), torch.as_tensor(truth))
        return float(metric.compute())

    mine = [
        resampled(lambda chosen, it=it: f1(it[chosen], labels[chosen]), 150, 300)
        for it in (one, other)
    ]
    expected = stats.bootstrap(
        (one.numpy(), other.numpy(), labels.numpy()),
        lambda a, b, y: f1(a, y) - f1(b, y),
        n_resamples=300,
        vectorized=False,
        paired=True,
        method="percentile",
        rng=1,
    )
    # each knows it to 4%
    assert float((mine[0] - mine[1]).std()) == pytest.approx(expected.standard_error, rel=0.15)
