"""LiNeS: factors by hand, the authors' loop over names, limits, and other methods inside."""

import pytest
import torch

from fmerge.errors import UserError
from fmerge.methods import TIES, TSVM, DFMerge, FisherMerge, LiNeS, TaskArithmetic
from fmerge.methods.composition import Transformed
from fmerge.methods.transforms import Trim
from tests.compare import assert_same


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


LAYERS = [f"h.{i}.w" for i in range(4)]
NAMES = ["wte.weight", *LAYERS, "ln_f.weight"]


def model(seed, names=NAMES, shape=(3, 4)):
    return {name: gaussian(10 * seed + i, *shape) for i, name in enumerate(names)}


def test_by_hand():
    zero = {name: torch.zeros(2) for name in NAMES}
    expert = {name: torch.ones(2) for name in NAMES}
    merged = LiNeS(a=0.2, b=0.6).merge(zero, [expert, expert], [1.0, 0.5])
    factors = {name: float(tensor[0]) / 1.5 for name, tensor in merged.items()}
    wanted = dict(zip(NAMES, (0.2, 0.2, 0.4, 0.6, 0.8, 0.2), strict=True))
    assert factors == pytest.approx(wanted)


def test_encoder_and_decoder_are_scaled_by_their_own_depth():
    names = ["encoder.block.0.w", "encoder.block.1.w", *(f"decoder.block.{i}.w" for i in range(3))]
    zero = {name: torch.zeros(1) for name in names}
    expert = {name: torch.ones(1) for name in names}
    merged = LiNeS(a=0.0, b=1.0).merge(zero, [expert], [1.0])
    assert [float(one) for one in merged.values()] == [0.0, 1.0, 0.0, 0.5, 1.0]
    alone = LiNeS(a=0.3, b=1.0).merge({"h.0.w": torch.zeros(1)}, [{"h.0.w": torch.ones(1)}], [1.0])
    assert float(alone["h.0.w"]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "method", [TaskArithmetic(), TIES(density=0.4), TSVM(), FisherMerge(), DFMerge()]
)
def test_the_inner_method_merges_the_scaled_task_vectors(method):
    base, *models = (model(seed) for seed in range(5))
    experts, fishers = models[:2], [{k: v**2 for k, v in one.items()} for one in models[2:]]
    a, b = 0.3, 0.9
    scaled = [dict(expert) for expert in experts]
    for one in scaled:
        for name in NAMES:
            # the authors' loop: blocks by their number, a outside of them
            layer = next((i for i in range(4) if f".{i}." in name), None)
            factor = a if layer is None else a + b * layer / 3
            one[name] = base[name] + factor * (one[name] - base[name])
    expected = method.merge(base, scaled, [0.9, 0.4], fishers[:2])
    assert_same(LiNeS(method, a, b).merge(base, experts, [0.9, 0.4], fishers[:2]), expected)
    # a = 1, b = 0: the method
    expected = method.merge(base, experts, [0.9, 0.4], fishers[:2])
    assert_same(LiNeS(method, 1.0, 0.0).merge(base, experts, [0.9, 0.4], fishers[:2]), expected)


def test_declares_what_its_method_does():
    assert (LiNeS(TIES()).scale_invariant, LiNeS().scale_invariant) == (True, False)
    assert LiNeS(DFMerge()).statistic == "moving fisher" and LiNeS().needs_base
    assert repr(LiNeS(a=0.1)) == "LiNeS(method=TaskArithmetic(), a=0.1, b=0.5)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": -0.1}, "a: is -0.1, but must lie in [0, inf)"),
        ({"b": float("nan")}, "b: is nan, but must lie in [0, inf)"),
        ({"method": LiNeS()}, "LiNeS: method is scaled by LiNeS itself; one scaling is enough"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError) as raised:
        LiNeS(**arguments)
    assert str(raised.value) == message


def test_its_two_numbers_can_be_searched():
    method = LiNeS(TIES(density=0.4), a=0.3, b=1.5)
    assert method.numbers == {"LiNeS.a": (0.3, 0.0, 1.0), "LiNeS.b": (1.5, 0.0, 1.5)}
    other = method.with_numbers({"LiNeS.b": 0.7, "x": 1.0})
    assert (other.a, other.b, other.method) == (0.3, 0.7, method.method)
    base, *experts = (model(seed) for seed in range(3))
    expected = LiNeS(TIES(density=0.4), a=0.3, b=0.7).merge(base, experts, [1.0, 0.5])
    assert_same(other.merge(base, experts, [1.0, 0.5]), expected)
    # inside of a composition
    outer = Transformed(Trim(0.5, per_tensor=True), method)
    assert outer.numbers == method.numbers
    made = outer.with_numbers({"LiNeS.a": 0.1})
    assert (made.method.a, outer.method.a, made.transform) == (0.1, 0.3, outer.transform)
    plain = TIES()
    assert plain.numbers == {} and plain.with_numbers({"a": 1.0}) is plain
