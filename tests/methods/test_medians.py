"""The Fisher-weighted median: worked cases, and its limits."""

import pytest
import torch

from fmerge.methods import FisherMedian
from tests.compare import assert_same


def one(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


EXPERTS = [one(1.0, 1.0, 1.0, 9.0), one(2.0, 5.0, 2.0, 8.0), one(4.0, 3.0, 7.0, 7.0)]


def test_by_hand():
    # λF, in the order of the experts; half of the sum; the value that reaches it, from below:
    # (1, 1, 3), 2.5: 1 and 2 hold 2, so 4.   (4, 1, 2), 3.5: 1 holds 4.
    # (1, 1, 2), 2: 1 and 2 hold 2, so 2.     all zero: λ alone, (1, 1, ½), 1.25: 7 holds ½, so 8.
    fishers = [one(1.0, 4.0, 1.0, 0.0), one(1.0, 1.0, 1.0, 0.0), one(6.0, 4.0, 4.0, 0.0)]
    merged = FisherMedian().merge(None, EXPERTS, [1.0, 1.0, 0.5], fishers)
    assert_same(merged, one(4.0, 1.0, 2.0, 8.0))


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("weight", [0.1, 1 / 3, 1.0])
def test_equal_weights_give_the_plain_median(count, weight):
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, 6, 5, generator=generator)
    ones = [{"w": torch.full((6, 5), 0.7)}] * count
    merged = FisherMedian().merge(None, [{"w": row} for row in rows], [weight] * count, ones)
    assert_same(merged, {"w": rows.median(dim=0).values}, rtol=0, atol=0)


def test_an_expert_with_more_than_half_of_the_weight_wins():
    fishers = [one(1, 1, 1, 1), one(1, 1, 1, 1), one(2.1, 2.1, 2.1, 2.1)]
    assert_same(FisherMedian().merge(None, EXPERTS, [0.5] * 3, fishers), EXPERTS[2])


@pytest.mark.parametrize(
    ("coefficients", "fishers", "message"),
    [([1.0] * 3, None, "a diagonal Fisher"), ([0.0] * 3, [one(1, 1, 1, 1)] * 3, "positive sum")],
)
def test_what_it_lacks_is_said(coefficients, fishers, message):
    with pytest.raises(ValueError, match=message):
        FisherMedian().merge(None, EXPERTS, coefficients, fishers)
