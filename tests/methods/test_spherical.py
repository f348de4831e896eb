"""SLERP and the Karcher mean: worked cases, ends, and each as the other's limit."""

import math

import pytest
import torch

from fmerge.errors import UserError
from fmerge.methods import SLERP, Isotropic, Karcher
from tests.compare import assert_same


def one(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


def at(degrees, norm=1.0):
    angle = math.radians(degrees)
    return one(norm * math.cos(angle), norm * math.sin(angle), 0.0)


def on_the_sphere(seed, norm):
    tensor = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).double()
    return {"w": norm * tensor / tensor.norm()}


def test_slerp_by_hand():
    # a third of the way from 0° to 90°
    assert_same(SLERP().merge(None, [at(0), at(90)], [0.5, 0.25]), at(30))
    # unequal norms: Ω = 90°, t = ½: sin 45° · (a + b)
    half = math.sin(math.radians(45))
    merged = SLERP().merge(None, [at(0), at(90, norm=3.0)], [0.2, 0.2])
    assert_same(merged, one(half, 3 * half, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_at_its_ends(dtype):
    ends = [{k: v.to(dtype) for k, v in on_the_sphere(m, 2.0 + m).items()} for m in (0, 1)]
    assert_same(SLERP().merge(None, ends, [0.4, 0.0]), ends[0], rtol=0, atol=0)
    assert_same(SLERP().merge(None, ends, [0.0, 0.4]), ends[1], rtol=0, atol=0)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_keeps_the_norm_along_the_arc(t):
    ends = [on_the_sphere(0, 3.0), on_the_sphere(1, 3.0)]
    merged = SLERP().merge(None, ends, [1 - t, t])
    assert_same({"norm": merged["w"].norm()}, {"norm": 3.0})
    assert float(Isotropic().merge(None, ends, [1 - t, t])["w"].norm()) < 2.9


@pytest.mark.parametrize(
    "second",
    [one(2.0, 4.0, 6.0), one(-1.0, -2.0, -3.0), one(0.0, 0.0, 0.0), one(1.0, 2.0, 3 + 1e-7)],
)
def test_slerp_of_colinear_tensors_is_the_straight_line(second):
    ends = [one(1.0, 2.0, 3.0), second]
    expected = Isotropic().merge(None, ends, [0.75, 0.25])
    assert_same(SLERP().merge(None, ends, [0.75, 0.25]), expected)


def test_slerp_of_fine_tuned_models_turns_by_their_small_angle():
    """float32, 1e-3 radians: a quarter of the turn, to the last digits of the weights."""
    start, side = on_the_sphere(0, 1.0)["w"], on_the_sphere(1, 1.0)["w"]
    side = (side - (side * start).sum() * start) / (side - (side * start).sum() * start).norm()
    ends = [start, start * math.cos(1e-3) + side * math.sin(1e-3)]
    expected = start * math.cos(2.5e-4) + side * math.sin(2.5e-4)
    merged = SLERP().merge(None, [{"w": end.float()} for end in ends], [0.75, 0.25])
    assert_same(merged, {"w": expected.float()})


def test_slerp_takes_two():
    for count in (1, 3):
        with pytest.raises(UserError, match=f"two experts, but there are {count}"):
            SLERP().merge(None, [at(0)] * count, [0.5] * count)
    with pytest.raises(ValueError, match="positive sum"):
        SLERP().merge(None, [at(0), at(90)], [0.0, 0.0])


@pytest.mark.parametrize("angle", [1e-6, 1e-3, 1.0, 170.0])
def test_karcher_of_two_is_slerp(angle):
    ends = [at(10, norm=2.0), at(10 + angle, norm=2.0)]
    for weights in ([0.5, 0.5], [0.3, 0.1]):
        expected = SLERP().merge(None, ends, weights)
        assert_same(Karcher(tolerance=1e-10).merge(None, ends, weights), expected, rtol=1e-7)


def test_karcher_by_hand():
    # on a great circle the mean angle is the mean of the angles: (0.2·0 + 0.2·30 + 0.4·90)/0.8,
    # and the length the mean of the lengths: (0.2·1 + 0.2·2 + 0.4·3)/0.8
    experts = [at(0), at(30, norm=2.0), at(90, norm=3.0)]
    merged = Karcher(tolerance=1e-10).merge(None, experts, [0.2, 0.2, 0.4])
    assert_same(merged, at(42 / 0.8, norm=1.8 / 0.8))


def test_karcher_is_stationary():
    experts = [on_the_sphere(m, 1.0) for m in range(4)]
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mean = Karcher().merge(None, experts, weights.tolist())["w"]
    logs = []
    for expert in experts:
        cosine = (mean * expert["w"]).sum()
        tangent = expert["w"] - cosine * mean
        logs.append(cosine.acos() * tangent / tangent.norm())
    pull = (weights[:, None, None] * torch.stack(logs)).sum(0).norm()
    assert float(pull) < 2e-6
    straight = Isotropic().merge(None, experts, weights.tolist())["w"]
    assert float((mean - straight / straight.norm()).norm()) > 1e-3


def test_karcher_leaves_out_what_has_no_direction():
    zero = one(0.0, 0.0, 0.0)
    # the direction of the other, and half its length
    assert_same(Karcher().merge(None, [zero, at(20, norm=2.0)], [0.5, 0.5]), at(20))
    assert_same(Karcher().merge(None, [zero, zero], [0.5, 0.5]), zero)
    experts = [{"w": torch.tensor(2.0)}, {"w": torch.tensor(-1.0)}]
    assert_same(Karcher().merge(None, experts, [0.5, 0.5]), {"w": torch.tensor(0.5)})


@pytest.mark.parametrize(
    ("method", "experts", "message"),
    [
        (Karcher(), [at(0), at(180)], "'w': the experts' directions cancel"),
        (Karcher(), [at(0), at(0), at(180)], "'w': the experts point in opposite directions"),
        (
            Karcher(1e-12, 2),
            [at(0), at(50), one(0, 0, 1)],
            "'w': the mean still moves by .* after 2",
        ),
    ],
)
def test_karcher_refuses(method, experts, message):
    with pytest.raises(ValueError, match=message):
        method.merge(None, experts, [0.3] * len(experts))


def test_mergekit_agrees():
    """The same numbers from mergekit's functions, where it is installed."""
    reason = "mergekit is not installed (pip install '.[mergekit]')"
    slerp = pytest.importorskip("mergekit.merge_methods.slerp", reason=reason)
    karcher = pytest.importorskip("mergekit.merge_methods.karcher", reason=reason)
    experts = [{"w": on_the_sphere(m, 1.0 + m)["w"].float()} for m in (0, 1, 2)]
    tensors = [expert["w"] for expert in experts]
    # mergekit 0.1.5 turns each row by its own angle: one row is the whole tensor
    rows = [tensor.reshape(1, -1) for tensor in tensors[:2]]
    expected = slerp.slerp(torch.tensor([0.25]), *rows).reshape(4, 5)
    assert_same(SLERP().merge(None, experts[:2], [0.6, 0.2]), {"w": expected}, atol=1e-6)
    expected = karcher.karcher_merge_tensors(tensors, [0.2, 0.3, 0.5], max_iter=100, tol=1e-6)
    assert_same(Karcher().merge(None, experts, [0.2, 0.3, 0.5]), {"w": expected}, atol=1e-5)
