"""Confidence intervals against scipy's and against cases worked by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fmerge.modules.metrics import make_metric
from fmerge.report.confidence import (
    Estimate,
    bonett_price,
    mean_over_tasks,
    paired,
    proportion,
    resampled,
    wilson,
)


@pytest.mark.parametrize(("right", "examples"), [(0, 5), (3, 11), (50, 100), (297, 480), (7, 7)])
def test_the_interval_of_a_share_is_scipys(right, examples):
    found = wilson(right / examples, examples)
    expected = stats.binomtest(right, examples).proportion_ci(0.95, method="wilson")
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.error > 0


def test_many_examples_have_the_binomial_error():
    assert wilson(0.3, 100_000).error == pytest.approx(math.sqrt(0.3 * 0.7 / 100_000), rel=1e-2)


@pytest.mark.parametrize(("right", "examples"), [(30, 30), (29, 30), (3, 11), (995, 1000)])
def test_few_errors_have_agresti_and_coulls_interval(right, examples):
    """The usual interval with z²/2 = 1.92 more right and as many more wrong examples."""
    ours, number = right + 1.920729, examples + 3.841459
    half = 1.959963985 * math.sqrt(ours * (number - ours) / number) / number
    low, high = ours / number - half, min(1, ours / number + half)
    found = proportion(right / examples, examples)
    assert found.ends() == pytest.approx([right / examples, low, high], abs=1e-6)
    wilsons = wilson(right / examples, examples)
    assert found.low <= wilsons.low + 1e-12 and wilsons.high <= found.high + 1e-12
    assert found.error > 0
    other = proportion(1 - right / examples, examples)
    assert [1 - other.high, 1 - other.low] == pytest.approx([low, high], abs=1e-6)


def test_more_errors_have_wilsons_interval():
    assert proportion(0.8, 30) == wilson(0.8, 30) and proportion(0.5, 1000) == wilson(0.5, 1000)


@pytest.mark.parametrize("examples", [30, 100, 1000])
def test_an_accuracy_is_covered_wherever_it_is(examples):
    shares = torch.linspace(0, 1, 401, dtype=torch.float64).numpy()
    rows = [proportion(right / examples, examples) for right in range(examples + 1)]
    low, high = (np.array([getattr(one, end) for one in rows]) for end in ("low", "high"))
    assert (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all()
    weights = stats.binom.pmf(np.arange(examples + 1), examples, shares[:, None])
    covered = (low <= shares[:, None] + 1e-9) & (shares[:, None] - 1e-9 <= high)
    assert (weights * covered).sum(1).min() > 0.93


def test_a_paired_difference_worked_by_hand():
    # b = (2, 0), n = 4: shares 3/6 and 1/6, difference 1/3, variance (4/6 − 1/9)/6 = 5/54
    found = paired(torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 0, 0]))
    half = 1.959963985 * math.sqrt(5 / 54)
    assert found.ends() == pytest.approx([0.5, 1 / 3 - half, 1 / 3 + half])
    assert found.error == pytest.approx(math.sqrt(5 / 54)) and not found.decided


def test_a_paired_difference_is_the_usual_one_with_two_more_examples():
    one, other = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)).round()
    more = torch.tensor([1.0, 0.0])
    difference = torch.cat([one - other, more - more.flip(0)]).double().numpy()
    error = difference.std() / math.sqrt(302)
    expected = stats.norm.interval(0.95, difference.mean(), error)
    found = paired(one, other)
    assert found.value == pytest.approx(float((one - other).mean()))
    assert [found.low, found.high] == pytest.approx(expected) and found.error == error
    swapped = paired(other, one)
    assert swapped.ends() == pytest.approx([-found.value, -found.high, -found.low])


@pytest.mark.parametrize("examples", [3, 30, 1000])
def test_models_that_agree_on_every_example_may_still_differ(examples):
    # shares 1/(n + 2) each: no zero width, which no finite sample justifies
    right = torch.ones(examples)
    half = 1.959963985 * math.sqrt(2) / (examples + 2)
    assert paired(right, right).ends() == pytest.approx([0, -half, half], abs=1e-6)
    assert paired(right[:1], right[1:2]) is None


def test_a_difference_ends_at_one():
    found = bonett_price(10, 0, 10)
    assert found.value == found.high == 1 and found.low < 1
    assert bonett_price(0, 10, 10).low == -1


@pytest.mark.parametrize(
    "examples",
    [30, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 1000))],
)
def test_a_paired_difference_is_covered_wherever_it_is(examples):
    """Summed over all outcomes, for discordant shares up to 30%, however they are divided."""
    most = min(examples, int(0.3 * examples + 8 * math.sqrt(0.21 * examples)) + 3)
    pairs = [(b, c) for b in range(most + 1) for c in range(most + 1 - b)]
    rows = [bonett_price(b, c, examples) for b, c in pairs]
    low, high = (np.array([getattr(one, end) for one in rows]) for end in ("low", "high"))
    counts = np.array([(b, c, examples - b - c) for b, c in pairs])
    for share in (0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3):
        for more in (0.5, 0.6, 0.8, 1.0):
            one, other = share * more, share * (1 - more)
            weights = stats.multinomial.pmf(counts, examples, [one, other, 1 - share])
            covered = (low <= one - other + 1e-9) & (one - other - 1e-9 <= high)
            assert (weights * covered).sum() > 0.93, (share, more)


@pytest.mark.slow
@pytest.mark.parametrize("examples", [30, 100, 1000])
@pytest.mark.parametrize("tasks", [2, 5])
def test_the_mean_over_tasks_is_covered(examples, tasks):
    rng = np.random.default_rng(0)
    shares = np.linspace(0.6, 0.99, tasks)
    covered = {"accuracy": 0, "difference": 0}
    for _ in range(3000):
        right = rng.binomial(examples, shares)
        found = mean_over_tasks([proportion(one / examples, examples) for one in right])
        covered["accuracy"] += found.low <= shares.mean() <= found.high
        counts = rng.multinomial(examples, [0.04, 0.01, 0.95], tasks)
        found = mean_over_tasks([bonett_price(int(b), int(c), examples) for b, c, _ in counts])
        covered["difference"] += found.low <= 0.03 <= found.high
    assert min(covered.values()) / 3000 > 0.93, covered


def test_the_mean_over_tasks_worked_by_hand():
    # √(0.03² + 0.04²) / 2 = 0.025
    half = 1.959963985
    tasks = [Estimate(v, v - half * e, v + half * e, e) for v, e in ((0.1, 0.03), (0.3, 0.04))]
    found = mean_over_tasks(tasks)
    assert found.ends() == pytest.approx([0.2, 0.2 - 0.025 * half, 0.2 + 0.025 * half])
    assert found.error == pytest.approx(0.025) and found.decided
    assert mean_over_tasks([tasks[0], None]) is None and mean_over_tasks([]) is None


def test_the_mean_over_tasks_keeps_the_width_of_each_side():
    # below √(0.3² + 0.4²) / 2, above √(0.05² + 0.12²) / 2
    found = mean_over_tasks([Estimate(0.9, 0.6, 0.95, 1), Estimate(0.8, 0.4, 0.92, 1)])
    assert found.ends() == pytest.approx([0.85, 0.85 - 0.25, 0.85 + 0.065])
    perfect = mean_over_tasks([proportion(1.0, 30), proportion(1.0, 50)])
    assert perfect.value == perfect.high == 1 and perfect.low > proportion(1.0, 30).low


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
    metric = make_metric("f1", ["a", "b"])

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
