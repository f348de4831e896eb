"""Bootstrap intervals: what they are for accuracies, no zero widths, and their ends."""

import math

import pytest
import torch
from scipy import stats

from fmerge.modules.metrics import make_metric
from fmerge.report.confidence import bonett_price
from fmerge.report.resamples import (
    Resamples,
    correlation,
    correlation_difference,
    difference,
    of_classes,
    of_numbers,
    spread,
)


def metric(name, classes=2):
    made = make_metric(name, ["x"] * classes)

    def score(predictions, targets):
        made.reset()
        made.update(predictions, targets)
        return float(made.compute())

    return score


def right(predictions, targets):
    return float((predictions == targets).double().mean())


def binary(n=60, wrong=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) < 0.4).long()
    return labels ^ (torch.rand(n, generator=generator) < wrong).long(), labels


def test_for_the_accuracy_the_interval_is_agresti_and_coulls():
    """With two more examples, of which one is right; centre and spread are known."""
    predictions, labels = binary(40)
    number = int((predictions == labels).sum())
    found = of_classes(right, predictions, labels, 2, draws=1000)
    centre = (number + 1) / 42
    assert found.centre == pytest.approx(centre, abs=1e-6)
    assert float(found.draws.mean()) == pytest.approx(centre, abs=0.01)
    error = math.sqrt(centre * (1 - centre) / 42)
    assert float(found.draws.std()) == pytest.approx(error, rel=0.1)
    t = stats.t.ppf(0.975, 39) * math.sqrt(40 / 39)
    interval = spread(found)
    half = t * float(found.draws.std())
    assert [interval.low, interval.high] == pytest.approx([centre - half, centre + half], abs=1e-6)
    assert interval.value == pytest.approx(number / 40)


def test_for_a_difference_of_accuracies_it_is_bonett_and_prices():
    one, labels = binary(40, seed=1)
    other, _ = binary(40, wrong=0.35, seed=1)
    ours, theirs = one == labels, other == labels
    expected = bonett_price(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), 40)
    first = of_classes(right, one, labels, 2, draws=1000)
    second = of_classes(right, other, labels, 2, second=True, draws=1000)
    found = difference(first, second)
    assert found.value == pytest.approx(expected.value, abs=1e-6)
    assert found.error == pytest.approx(expected.error, rel=0.1)
    assert found.low + found.high == pytest.approx(expected.low + expected.high, abs=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
def test_no_mistake_and_no_disagreement_have_a_width(name):
    _, labels = binary(30)
    first, second = (of_classes(metric(name), labels, labels, 2, second) for second in (0, 1))
    alone, both = spread(first, -1.0), difference(first, second, -1.0)
    assert alone.value == alone.high == 1 and 0.5 < alone.low < 0.95
    assert both.value == 0 and -0.5 < both.low < -0.05 and 0.05 < both.high < 0.5


@pytest.mark.parametrize("classes", [2, 3, 25])
def test_two_examples_are_added_for_any_number_of_classes(classes):
    labels = torch.arange(50) % classes
    sizes = []

    def counted(predictions, targets):
        sizes.append(len(targets))
        return right(predictions, targets)

    first = of_classes(counted, labels, labels, classes, draws=3)
    second = of_classes(counted, labels, labels, classes, second=True, draws=3)
    assert first.centre == second.centre == pytest.approx(51 / 52)
    assert sizes[:3] == [52, 52, 52]
    # what one answers rightly of the two, the other answers wrongly
    assert bool((first.draws + second.draws >= 1.5).all())


def test_a_correlation_is_that_of_fishers_transform():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(100, generator=generator, dtype=torch.float64)
    x = y + 0.4 * torch.randn(100, generator=generator, dtype=torch.float64)
    found = of_numbers(metric("pearson", 1), x, y, draws=200)
    interval = correlation(found)
    expected = stats.pearsonr(x, y).confidence_interval(0.95)  # for normal numbers
    assert [interval.low, interval.high] == pytest.approx(list(expected), abs=0.02)
    assert interval.high - interval.value < interval.value - interval.low


def test_a_difference_of_correlations_worked_by_hand():
    # draws of equal spread and no correlation: √(0.1² + 0.1²) on each side, near 0
    waves = torch.linspace(0, 2 * math.pi, 9)[:-1].double()
    one = Resamples(0.0, 0.0, 0.1 * waves.sin(), 10_000)
    other = Resamples(0.0, 0.0, 0.1 * waves.cos(), 10_000)
    alone, both = correlation(one), correlation_difference(one, other)
    assert alone.high == -alone.low
    assert [both.low, both.high] == pytest.approx([2**0.5 * alone.low, 2**0.5 * alone.high])
    assert correlation_difference(one, one).ends() == pytest.approx([0, 0, 0], abs=1e-9)


def test_a_constant_predictor_has_no_spread_and_no_nan():
    y = torch.randn(20, generator=torch.Generator().manual_seed(0))
    still = of_numbers(metric("pearson", 1), torch.ones(20), y, draws=5)
    moving = of_numbers(metric("pearson", 1), y, y, draws=5)
    assert correlation(still).ends() == [0, 0, 0]
    assert correlation(moving).value == 1 and correlation(moving).high == 1
    assert correlation_difference(moving, still).value == 1


def fast_f1(predictions, targets):
    _, false, missed, hit = torch.bincount(2 * targets + predictions, minlength=4).tolist()
    return 2 * hit / max(2 * hit + false + missed, 1)


def fast_pearson(predictions, targets):
    x, y = predictions - predictions.mean(), targets - targets.mean()
    return float((x @ y) / (x.norm() * y.norm()))


@pytest.mark.slow
@pytest.mark.parametrize("examples", [30, 100, 1000])
def test_f1_and_its_difference_are_covered(examples):
    """Two models of 85 and 80% right answers, of which half are as hard for both."""
    generator = torch.Generator().manual_seed(0)

    def drawn(n):
        labels = (torch.rand(n, generator=generator) < 0.3).long()
        luck = torch.rand(3, n, generator=generator)
        luck[1] = torch.where(luck[2] < 0.5, luck[0], luck[1])
        rights = (luck[0] < 0.85, luck[1] < 0.8)
        return [torch.where(right, labels, 1 - labels) for right in rights], labels

    (one, other), labels = drawn(2_000_000)
    truth, its = fast_f1(one, labels), fast_f1(other, labels)
    covered = [0, 0]
    for _ in range(400):
        (one, other), labels = drawn(examples)
        first = of_classes(fast_f1, one, labels, 2)
        second = of_classes(fast_f1, other, labels, 2, second=True)
        alone, both = spread(first), difference(first, second)
        covered[0] += alone.low <= truth <= alone.high
        covered[1] += both.low <= truth - its <= both.high
    assert min(covered) / 400 > 0.92, covered  # 0.93 within a standard error of 1.1 points


@pytest.mark.slow
@pytest.mark.parametrize("examples", [30, 100, 1000])
def test_a_correlation_and_its_difference_are_covered(examples):
    generator = torch.Generator().manual_seed(0)
    covered = [0, 0]
    for _ in range(400):
        y, a, b = torch.randn(3, examples, generator=generator, dtype=torch.float64)
        x, z = 0.9 * y + 0.19**0.5 * a, 0.8 * y + 0.6 * b
        first, second = of_numbers(fast_pearson, x, y), of_numbers(fast_pearson, z, y)
        alone, both = correlation(first), correlation_difference(first, second)
        covered[0] += alone.low <= 0.9 <= alone.high
        covered[1] += both.low <= 0.1 <= both.high
    assert min(covered) / 400 > 0.92, covered
