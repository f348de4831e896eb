"""Half-precision experts: every entry of a merge beside the same formula in float64."""

import math

import pytest
import torch

from fmerge.merging.in_memory import merge
from fmerge.methods import Average, Gram, Isotropic, RegMean, TaskArithmetic
from tests.methods.test_properties import METHODS

ALL = {**METHODS, "RegMean": RegMean()}
HALVES = [torch.bfloat16, torch.float16]
SHAPES = {"w": (48, 40), "b": (3000,)}


def problem(method, dtype, count, seed=0, step=0.1):
    """A base, experts near it, and statistics in float32."""
    generator = torch.Generator().manual_seed(seed)

    def model():
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base = {name: one.to(dtype) for name, one in model().items()}
    experts = [
        {name: (base[name].float() + step * change).to(dtype) for name, change in model().items()}
        for _ in range(count)
    ]
    if isinstance(method, RegMean):
        inputs = [torch.randn(200, 40, generator=generator) for _ in range(count)]
        return base, experts, [{"w": Gram(one.T @ one)} for one in inputs]
    fishers = [{name: one.square() for name, one in model().items()} for _ in range(count)]
    return base, experts, None if method.statistic is None else fishers


def doubled(tensors):
    return {
        name: Gram(one.matrix.double()) if isinstance(one, Gram) else one.double()
        for name, one in tensors.items()
    }


def unit_in_the_last_place(values, dtype):
    info = torch.finfo(dtype)
    return torch.exp2(values.abs().clamp_min(info.tiny).log2().floor()) * info.eps


def furthest(found, exact, models, dtype):
    """The largest error in units in the last place of an entry's largest input."""
    largest = torch.stack([model.double().abs() for model in models]).amax(dim=0)
    return float(((found.double() - exact).abs() / unit_in_the_last_place(largest, dtype)).max())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ALL)
def test_no_entry_is_further_from_float64_than_its_rounding(name, dtype):
    for count, coefficients in ((2, [0.3, 0.7]), (3, [0.3] * 3), (5, [0.3, 0.7, 0.2, 0.9, 1.0])):
        if name.partition(",")[0] in {"SLERP", "NuSLERP"} and count != 2:
            continue
        base, experts, statistics = problem(ALL[name], dtype, count)
        exact = ALL[name].merge(
            doubled(base),
            [doubled(one) for one in experts],
            coefficients,
            None if statistics is None else [doubled(one) for one in statistics],
        )
        found = ALL[name].merge(base, experts, coefficients, statistics)
        for key, one in found.items():
            rounded = exact[key].to(dtype)
            models = [base[key], *(expert[key] for expert in experts)]
            assert furthest(one, rounded.double(), models, dtype) <= 1
            assert (one == rounded).double().mean() >= 0.999
            # a sum can be larger than every input: its own rounding is then the larger one;
            # PyTorch rounds float64 to a half by way of float32
            assert furthest(one, exact[key], [*models, exact[key]], dtype) <= 0.5 + 2**-13


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("count", [2, 3, 5, 6, 7, 12])
def test_the_average_is_the_rounded_mean(count, dtype):
    _, experts, _ = problem(Average(), dtype, count, step=0.01)
    equal = Isotropic().merge(None, experts, [0.3] * count)
    for key, one in Average().merge(None, experts, []).items():
        mean = (sum(expert[key].double() for expert in experts) / count).to(dtype)
        assert (one == mean).double().mean() >= 0.999
        assert torch.equal(equal[key], one)


def test_halves_that_end_between_two_numbers_go_to_the_even_one():
    # 1 + 1 + 1.0234375 = 3 · 1.0078125 is a bfloat16; 1 + 1 + 1.01171875 needs another digit
    experts = [{"w": torch.tensor([one]).bfloat16()} for one in (1.0, 1.0, 1.0234375)]
    assert Average().merge(None, experts, [])["w"].item() == 1.0078125
    middle = [{"w": torch.tensor([one]).bfloat16()} for one in (1.0, 1.0, 1.0, 1.015625)]
    assert math.isclose(sum(one["w"].item() for one in middle) / 4, 1.00390625)  # half a place
    assert Average().merge(None, middle, [])["w"].item() == 1.0
    thirds = [{"w": torch.tensor([one]).bfloat16()} for one in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0234375)]
    assert Average().merge(None, thirds, [])["w"].item() == 1.0  # 1.00390625 again: 6 · it is exact


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_float32_is_averaged_to_one_rounding(count):
    generator = torch.Generator().manual_seed(count)
    experts = [{"w": torch.randn(999, generator=generator)} for _ in range(count)]
    exact = sum(one["w"].double() for one in experts) / count
    found = Average().merge(None, experts, [])["w"]
    assert furthest(found, exact, [one["w"] for one in experts], torch.float32) <= 1


@pytest.mark.parametrize("name", ["TIES", "DARE, elected", "DELLA"])
def test_votes_that_cancel_keep_the_base(name):
    # 0.3·τ₁ + 0.3·τ₂ + 0.3·τ₃ with τ₁ + τ₂ + τ₃ = 0, in which rounded products do not cancel
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-99, 99, (2, 500), generator=generator) / 128
    base = {"w": torch.zeros(1, 500)}
    experts = [{"w": one[None]} for one in (*steps, -steps.sum(dim=0))]
    method = {"TIES": {"density": 1.0}, "DARE, elected": {"drop": 0.0, "election": "ties"}}
    kind = type(ALL[name])
    made = kind(**method.get(name, {"drop": 0.0, "epsilon": 0.0}))
    assert torch.equal(made.merge(base, experts, [0.3] * 3)["w"], base["w"])


MIXED = [
    ([torch.bfloat16, torch.float32], torch.float32),
    ([torch.float32, torch.bfloat16], torch.float32),
    ([torch.bfloat16, torch.float16], torch.float32),  # neither holds the numbers of the other
    ([torch.float16, torch.float16], torch.float16),
    ([torch.bfloat16, torch.float64], torch.float64),
]


@pytest.mark.parametrize(("dtypes", "expected"), MIXED)
def test_experts_of_several_dtypes_give_the_one_that_holds_all(dtypes, expected):
    models = [
        {"w": torch.tensor([1.0, value], dtype=dtype)}
        for value, dtype in zip((2.0, 5.0), dtypes, strict=True)
    ]
    for found in (merge(models, "Average"), Average().merge(None, models, [])):
        assert found["w"].dtype == expected and found["w"].tolist() == [1.0, 3.5]
    base = {"w": torch.tensor([1.0, 1.0], dtype=torch.bfloat16)}
    found = TaskArithmetic().merge(base, models, [0.5, 0.25])["w"]
    assert found.dtype == expected and found.tolist() == [1.0, 2.5]


def test_mixed_dtypes_are_decided_tensor_by_tensor():
    half, full = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    found = merge([{"a": half, "b": full}, {"a": half, "b": half}], "Average")
    assert (found["a"].dtype, found["b"].dtype) == (torch.bfloat16, torch.float32)
