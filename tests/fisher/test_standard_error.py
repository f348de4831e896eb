"""Standard errors from batches: unbiased, right at the limits, and a pass that stops by them."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from fmerge.fisher import FisherAccumulator, estimate_fisher
from fmerge.fisher.standard_error import StandardError
from tests.compare import assert_same


class Line(nn.Module):
    """ℓ = w·x of one candidate, so that example n's squared gradient is x², known by hand."""

    def __init__(self, size=3):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, batch):
        return (batch["x"] @ self.weight)[:, None]


def batches(x, size):
    return [{"x": part} for part in x.split(size)]


def draws(n, seed=0, size=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=generator, dtype=torch.float64)


def test_batches_of_one_give_the_textbook_standard_error_of_a_mean():
    x, module = draws(50), Line()
    found = estimate_fisher(module, batches(x, 1), module, errors="entries")
    squares = x.square()
    assert_same(found.values, {"weight": squares.mean(0)})
    assert_same(found.standard_errors, {"weight": squares.std(0) / math.sqrt(50)})
    totals = squares.sum(1)
    expected = float(totals.std() / math.sqrt(50) / totals.mean())
    assert found.relative_error == pytest.approx(expected, rel=1e-9)


def test_uneven_batches_give_an_unbiased_variance():
    """Over many data sets the mean squared standard error is the variance of the estimates."""
    module, estimates, claimed = Line(100), [], []  # a hundred of them side by side
    for seed in range(100):
        x = draws(23, seed, size=100)
        found = estimate_fisher(module, batches(x, 4), module, errors="entries")
        estimates.append(found.values["weight"])
        claimed.append(found.standard_errors["weight"].square())
    true = torch.stack(estimates).var(0).mean()
    assert_same({"": torch.stack(claimed).mean()}, {"": true}, rtol=0.05)


def test_errors_of_the_total_do_not_change_the_sums():
    x, module = draws(20), Line()
    plain = estimate_fisher(module, batches(x, 3), module)
    assert_same(plain.values, {"weight": x.square().mean(0)})
    for errors in ("total", "entries"):
        found = estimate_fisher(module, batches(x, 3), module, errors=errors)
        assert_same(found.values, plain.values)
        assert found.relative_error > 0
    assert plain.relative_error is None and plain.standard_errors is None


def test_a_single_batch_knows_nothing_of_its_error():
    module = Line()
    found = estimate_fisher(module, batches(draws(5), 5), module, errors="entries")
    assert found.relative_error == math.inf
    assert bool((found.standard_errors["weight"] == math.inf).all())


def test_a_pass_stops_once_the_total_is_known_well_enough():
    x, module = draws(4000), Line()
    found = estimate_fisher(module, batches(x, 10), module, until=0.05)
    assert found.relative_error < 0.05
    # the total of 3 squares has relative spread √(2/3): 267 examples for 5%, give or take
    assert 150 < found.count < 450 and found.count % 10 == 0
    whole = estimate_fisher(module, batches(x[: found.count - 10], 10), module, errors="total")
    assert whole.relative_error >= 0.05  # one batch fewer was not enough
    everything = estimate_fisher(module, batches(x[:100], 10), module, until=0.001)
    assert everything.count == 100


@pytest.mark.parametrize("number", [2, 3, 5, 8, 30])
def test_the_interval_of_few_batches_is_students(number):
    module, x = Line(), draws(2 * number)
    found = estimate_fisher(module, batches(x, 2), module, errors="total")
    totals = torch.stack([part.square().sum() for part in x.split(2)]) / 2  # batches of one size
    interval = stats.t.interval(0.95, number - 1, totals.mean(), stats.sem(totals))
    total = float(found.values["weight"].sum())
    half = found.relative_interval * total
    assert [total - half, total + half] == pytest.approx([float(end) for end in interval])
    assert found.relative_interval > 1.96 * found.relative_error


def test_one_batch_has_no_interval_and_none_is_made_unasked():
    module = Line()
    assert estimate_fisher(module, batches(draws(5), 5), module).relative_interval is None
    found = estimate_fisher(module, batches(draws(5), 5), module, errors="total")
    assert found.relative_interval == math.inf


@pytest.mark.parametrize("number", [2, 4, 8, 40])
def test_the_interval_covers_the_total(number):
    """Totals of normal batches: 95% are covered, where 1.96 errors of 2 batches cover 70%."""
    generator = torch.Generator().manual_seed(number)
    covered = 0
    for _ in range(2000):
        spread = StandardError()
        for total in (20 + torch.randn(number, generator=generator)).tolist():
            spread.add(1, total)
        mean = spread.total / spread.count
        covered += abs(mean - 20) <= spread.relative_interval() * mean
    assert covered / 2000 > 0.93


@pytest.mark.parametrize("target", [0.1, 0.05])
def test_the_interval_covers_the_total_where_it_ends_the_pass(target):
    """Gamma totals of a variation of 50%: some variances look small by chance, and end it."""
    totals = torch.distributions.Gamma(4.0, 4.0)
    torch.manual_seed(1)
    covered = 0
    for drawn in totals.sample((2000, 400)).tolist():
        spread = StandardError()
        for total in drawn:
            spread.add(1, total)
            if spread.enough(target):
                break
        mean = spread.total / spread.count
        covered += abs(mean - 1) <= spread.relative_interval() * mean
    # the standard error of the share is 0.5 points
    assert covered / 2000 > 0.925


def test_heavy_tails_are_covered_less_often():
    """Of lognormal totals with σ = 1.5 eight batches rarely see the largest."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(1000):
        spread = StandardError()
        for total in (1.5 * torch.randn(8, generator=generator) - 1.125).exp().tolist():
            spread.add(1, total)
        mean = spread.total / spread.count
        covered += abs(mean - 1) <= spread.relative_interval() * mean
    assert 0.6 < covered / 1000 < 0.9


def test_a_restored_accumulator_goes_on_bit_for_bit():
    x, module = draws(40), Line()
    whole = FisherAccumulator(module, module, errors="entries")
    for batch in batches(x, 4):
        whole.add(batch)
    first = FisherAccumulator(module, module, errors="entries")
    for batch in batches(x[:16], 4):
        first.add(batch)
    second = FisherAccumulator(module, module, errors="entries")
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    for batch in batches(x[16:], 4):
        second.add(batch)
    found, expected = second.estimate(), whole.estimate()
    assert found.count == expected.count == 40
    assert torch.equal(found.values["weight"], expected.values["weight"])
    assert torch.equal(found.standard_errors["weight"], expected.standard_errors["weight"])
    assert found.relative_error == expected.relative_error
    whole.reset()
    assert whole.spread.batches == 0 and not whole.spread.squares["weight"].any()


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_float16_gradients_neither_vanish_nor_overflow(estimator):
    """Gradients of 2⁻²⁶ are zero in float16, those of 2²⁰ infinite: the scale follows."""
    torch.manual_seed(0)
    for size in (2.0**-26, 1.0, 2.0**10):
        layer = nn.Linear(8, 1, bias=False)
        x = torch.randn(6, 8).half().float()

        def log_probs(batch, layer=layer, size=size):
            with torch.autocast("cpu", dtype=torch.float16):
                return layer(batch["x"]).float() * size

        with torch.autocast("cpu", dtype=torch.float16):
            accumulator = FisherAccumulator(layer, log_probs, estimator)
            for start in range(6):
                accumulator.add({"x": x[start : start + 1]})
        expected = {"weight": (x * size).square().mean(0, keepdim=True)}
        assert_same(accumulator.estimate().values, expected, rtol=5e-3)


def test_gradients_beyond_float16_are_refused():
    layer = nn.Linear(2, 1, bias=False)

    def log_probs(batch):
        with torch.autocast("cpu", dtype=torch.float16):
            return layer(batch["x"]).float() * 2.0**30

    with torch.autocast("cpu", dtype=torch.float16):
        accumulator = FisherAccumulator(layer, log_probs)
        with pytest.raises(ValueError, match="overflow float16; use bf16-mixed"):
            accumulator.add({"x": torch.ones(1, 2)})
