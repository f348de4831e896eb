"""Model Stock: right angles and 60 degrees by hand, limits, and mergekit."""

import math

import pytest
import torch

from fmerge.methods import ModelStock
from tests.compare import assert_same
from tests.methods.peers import mergekit


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def pair(degrees):
    """Two task vectors of lengths 2 and 3 at an angle, from a base that is not zero."""
    turned = math.radians(degrees)
    base = torch.tensor([1.0, -1.0], dtype=torch.float64)
    first = 2 * torch.tensor([1.0, 0.0], dtype=torch.float64)
    second = 3 * torch.tensor([math.cos(turned), math.sin(turned)], dtype=torch.float64)
    return {"w": base}, [{"w": base + first}, {"w": base + second}]


@pytest.mark.parametrize(
    ("degrees", "t"),
    # 2 cos/(1 + cos): 1/(3/2) at 60°, 0 at 90°, −1/(1/2) at 120°
    [(0, 1.0), (60, 2 / 3), (90, 0.0), (120, -2.0), (180, 0.0)],
)
def test_two_experts_by_hand(degrees, t):
    base, experts = pair(degrees)
    average = (experts[0]["w"] + experts[1]["w"]) / 2
    expected = {"w": base["w"] + t * (average - base["w"])}
    assert_same(ModelStock().merge(base, experts, []), expected)


def test_four_experts_by_hand():
    # axes 1, 1, 2, 2: of six pairs two have a cosine of 1: t = 4/3 / (1 + 3/3) = 2/3
    base = {"w": torch.zeros(2)}
    experts = [{"w": torch.tensor(one)} for one in ([1.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 5.0])]
    expected = {"w": 2 / 3 * torch.tensor([0.75, 2.25])}
    assert_same(ModelStock().merge(base, experts, []), expected)


def test_by_row_each_row_has_its_angle():
    base = {"w": torch.zeros(2, 2)}
    first = {"w": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
    second = {"w": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}
    # the first row is parallel, the second at right angles
    expected = {"w": torch.tensor([[1.5, 0.0], [0.0, 0.0]])}
    assert_same(ModelStock(filter_wise=True).merge(base, [first, second], []), expected)


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 2)])
def test_limits(shape, filter_wise):
    base, expert, method = {"w": gaussian(0, *shape)}, {"w": gaussian(1, *shape)}, ModelStock()
    method = ModelStock(filter_wise)
    assert_same(method.merge(base, [expert], []), expert)
    assert_same(method.merge(base, [expert] * 3, []), expert)
    assert_same(method.merge(base, [base] * 3, []), base)
    assert_same(method.merge(base, [base, expert], []), base)  # a zero counts as orthogonal


def test_turning_all_models_turns_the_merge():
    rotation, _ = torch.linalg.qr(gaussian(9, 12, 12))
    base, *experts = [{"w": gaussian(m, 12)} for m in range(4)]
    merged = ModelStock().merge(base, experts, [])["w"]
    turned = [{"w": rotation @ one["w"]} for one in (base, *experts)]
    assert_same(ModelStock().merge(turned[0], turned[1:], []), {"w": rotation @ merged})


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("shape", [(6,), (4, 5)])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_mergekit_agrees(count, shape, filter_wise):
    base, *tensors = [gaussian(m, *shape) for m in range(count + 1)]
    expected = mergekit(
        *("model_stock", "model_stock_merge_method", tensors, base), filter_wise=filter_wise
    )
    found = ModelStock(filter_wise).merge({"w": base}, [{"w": one} for one in tensors], [])
    assert_same(found, {"w": expected})
