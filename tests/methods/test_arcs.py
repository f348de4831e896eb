"""NuSLERP and Multi-SLERP: quarter circles by hand, limits, SLERP, and mergekit."""

import math

import pytest
import torch

from fmerge.errors import UserError
from fmerge.methods import SLERP, Karcher, MultiSLERP, NuSLERP
from tests.compare import assert_same
from tests.methods.peers import mergekit


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


HALF = math.sqrt(0.5)
X, Y = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])


def test_nuslerp_by_hand():
    # rows: a quarter circle; a straight line from 1 to 3; columns would turn otherwise
    experts = [{"w": torch.stack([X, X / 2])}, {"w": torch.stack([Y, 3 * X / 2])}]
    merged = NuSLERP(along="rows").merge(None, experts, [0.5, 0.5])
    assert_same(merged, {"w": torch.tensor([[2 * HALF, 2 * HALF], [2.0, 0.0]])})
    turned = [{"w": one["w"].T.contiguous()} for one in experts]
    assert_same(
        NuSLERP(along="columns").merge(None, turned, [0.5, 0.5]), {"w": merged["w"].T.contiguous()}
    )
    base = {"w": torch.tensor([1.0, 1.0])}
    moved = [{"w": base["w"] + X}, {"w": base["w"] + Y}]
    # a third of the way: 30°
    expected = {"w": torch.tensor([1 + math.sqrt(3), 2.0])}
    assert_same(NuSLERP(task_vectors=True).merge(base, moved, [0.4, 0.2]), expected)


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
def test_nuslerp_of_whole_weights_is_slerp(shape):
    experts = [{"w": gaussian(m, *shape)} for m in (0, 1)]
    for coefficients in ([1.0, 0.0], [0.3, 0.5], [0.0, 0.4]):
        expected = SLERP().merge(None, experts, coefficients)
        assert_same(NuSLERP().merge(None, experts, coefficients), expected)


@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 2)])
def test_limits_of_nuslerp(shape, along):
    base, one, two = ({"w": gaussian(m, *shape)} for m in range(3))
    for method in (NuSLERP(along), NuSLERP(along, task_vectors=True)):
        assert_same(method.merge(base, [one, two], [0.7, 0.0]), one)
        assert_same(method.merge(base, [one, two], [0.0, 0.7]), two)
        assert_same(method.merge(base, [one, one], [0.7, 0.1]), one)
    still = NuSLERP(along, task_vectors=True)
    assert_same(still.merge(base, [base, base], [0.5, 0.5]), base)
    # to a point that has no direction: the straight line
    expected = {"w": base["w"] + 0.75 * (one["w"] - base["w"])}
    assert_same(still.merge(base, [one, base], [0.6, 0.2]), expected)
    opposite = {"w": 2 * base["w"] - one["w"]}
    expected = {"w": base["w"] + 0.5 * (one["w"] - base["w"])}
    assert_same(still.merge(base, [one, opposite], [0.6, 0.2]), expected)


def test_refusals():
    experts = [{"w": X}] * 3
    with pytest.raises(UserError, match="two experts, but there are 3; use MultiSLERP"):
        NuSLERP().merge(None, experts, [1.0] * 3)
    with pytest.raises(UserError, match="along: is 'row', but must be tensor, rows or columns"):
        NuSLERP(along="row")
    for method in (NuSLERP(), MultiSLERP()):
        with pytest.raises(ValueError, match="must have a positive sum"):
            method.merge(None, experts[:2], [0.0, 0.0])


@pytest.mark.parametrize("method", [NuSLERP(), MultiSLERP(), MultiSLERP(False)])
def test_weights_of_a_mean_are_not_negative(method):
    assert not method.allows_negative


def test_multislerp_by_hand():
    # directions x, y with weights 3/4, 1/4: (3, 1)/√10, of length 3/4 · 2 + 1/4 · 4
    experts = [{"w": X}, {"w": 2 * Y}]
    expected = {"w": 2.5 / math.sqrt(10) * torch.tensor([3.0, 1.0])}
    assert_same(MultiSLERP().merge(None, experts, [0.3, 0.1]), expected)
    scaled = MultiSLERP(normalize_weights=False).merge(None, experts, [0.3, 0.1])
    assert_same(scaled, {"w": 0.4 * expected["w"]})
    # opposite of equal weight: no direction, the straight line
    opposite = [{"w": X}, {"w": -3 * X}]
    assert_same(MultiSLERP().merge(None, opposite, [0.5, 0.5]), {"w": -X})


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 2)])
def test_limits_of_multislerp(shape):
    base, one, two = ({"w": gaussian(m, *shape)} for m in range(3))
    for vectors in (False, True):
        method = MultiSLERP(task_vectors=vectors)
        assert_same(method.merge(base, [one], [1.0]), one)
        assert_same(method.merge(base, [one] * 3, [1.0, 0.2, 0.3]), one)
        assert_same(method.merge(base, [one, two], [0.4, 0.0]), one)
    still = MultiSLERP(task_vectors=True)
    assert_same(still.merge(base, [base] * 3, [1.0] * 3), base)


def test_multislerp_is_karcher_for_two_equal_weights():
    experts = [{"w": gaussian(m, 4, 5)} for m in (0, 1)]
    expected = Karcher().merge(None, experts, [0.5, 0.5])
    assert_same(MultiSLERP().merge(None, experts, [0.5, 0.5]), expected, atol=1e-5)


@pytest.mark.parametrize("method", [NuSLERP(), NuSLERP(task_vectors=True), MultiSLERP()])
def test_turning_all_models_turns_the_merge(method):
    rotation, _ = torch.linalg.qr(gaussian(9, 12, 12))
    base, *experts = [{"w": gaussian(m, 12)} for m in range(3)]
    merged = method.merge(base, experts, [0.2, 0.5])["w"]
    turned = [{"w": rotation @ one["w"]} for one in (base, *experts)]
    assert_same(method.merge(turned[0], turned[1:], [0.2, 0.5]), {"w": rotation @ merged})


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("along", ["tensor", "rows", "columns"])
@pytest.mark.parametrize("shape", [(6,), (4, 5)])
def test_mergekit_agrees_with_nuslerp(shape, along, based):
    base, *tensors = [gaussian(m, *shape) for m in range(3)]
    expected = mergekit(
        *("nuslerp", "nuslerp_merge_method", tensors, base if based else None),
        weight=[0.2, 0.5],
        nuslerp_row_wise=along == "columns",
        nuslerp_flatten=along == "tensor",
    )
    method = NuSLERP(along, task_vectors=based)
    found = method.merge({"w": base}, [{"w": one} for one in tensors], [0.2, 0.5])
    assert_same(found, {"w": expected})


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_mergekit_agrees_with_multislerp(count, normalize, based):
    base, *tensors = [gaussian(m, 4, 5) for m in range(count + 1)]
    weights = [0.2, 0.5, 0.9, 0.1, 0.3][:count]
    expected = mergekit(
        *("multislerp", "multislerp", tensors, base if based else None),
        weight=weights,
        normalize_weights=normalize,
    )
    method = MultiSLERP(normalize_weights=normalize, task_vectors=based)
    found = method.merge({"w": base}, [{"w": one} for one in tensors], weights)
    assert_same(found, {"w": expected}, atol=1e-6)
