"""Core Space: lossless for linear methods, and equal to its definition for the others."""

import pytest
import torch

from fmerge.errors import UserError
from fmerge.methods import (
    SLERP,
    TIES,
    TSVM,
    WUDI,
    Average,
    CoreSpace,
    DFMerge,
    IsoC,
    Isotropic,
    LiNeS,
    RegMeanPP,
    TaskArithmetic,
)
from fmerge.methods.inputs import MergeInputs

NAMES = ["h.0.q.weight", "h.1.q.weight"]
RANKS = {"a": (2, 3), "b": (4, 0), "c": (1, 5)}
LAMBDAS = [0.4, 1.0, 0.7]


def family(dtype=torch.float64, rows=30, columns=24):
    """A base, experts θ₀ + BₘAₘ of other ranks, and the factors; a bias and a tensor at rest."""
    torch.manual_seed(0)
    base = {name: torch.randn(rows, columns) for name in NAMES}
    base |= {"h.0.q.bias": torch.randn(rows), "rest.weight": torch.randn(5, 5)}
    experts, factors = [], []
    for ranks in RANKS.values():
        own = {
            name: (0.3 * torch.randn(rows, rank).double(), torch.randn(rank, columns).double())
            for name, rank in zip(NAMES, ranks, strict=True)
        }
        expert = {name: (base[name].double() + b @ a).to(dtype) for name, (b, a) in own.items()}
        expert["h.0.q.bias"] = (base["h.0.q.bias"] + 0.1 * torch.randn(rows)).to(dtype)
        experts.append(expert | {"rest.weight": base["rest.weight"].to(dtype)})
        factors.append(own)
    return {name: one.to(dtype) for name, one in base.items()}, experts, factors


def close(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(
            found[name], tensor, **(tolerance or {"rtol": 1e-9, "atol": 1e-9})
        )


@pytest.mark.parametrize("method", [Average(), Isotropic(), TaskArithmetic(), LiNeS()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_linear_methods_are_the_same_in_the_whole_space(method, dtype):
    base, experts, _ = family(dtype)
    found = CoreSpace(method).merge(base, experts, LAMBDAS)
    expected = method.merge(base, experts, LAMBDAS)
    close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [TSVM(), IsoC(), WUDI(), TIES(0.4, per_tensor=True)])
def test_a_method_merges_the_small_matrices(method):
    base, experts, factors = family()
    found = CoreSpace(method).merge(base, experts, LAMBDAS)
    for name in NAMES:
        # the definition, on the factors: bases of all of them, singular vectors of the stack
        changes = [b @ a for b, a in (own[name] for own in factors)]
        count = sum(own[name][0].shape[1] for own in factors)
        left = torch.linalg.svd(torch.cat(changes, dim=1)).U[:, :count]
        right = torch.linalg.svd(torch.cat(changes, dim=0)).Vh[:count].T
        small = [{name: left.T @ change @ right} for change in changes]
        zero = {name: torch.zeros(count, count).double()}
        merged = method.merge(zero, small, LAMBDAS)[name]
        torch.testing.assert_close(found[name] - base[name], left @ merged @ right.T)
    rest = method.merge(base, experts, LAMBDAS)
    torch.testing.assert_close(found["h.0.q.bias"], rest["h.0.q.bias"])
    assert found["rest.weight"].equal(base["rest.weight"])


def test_rounding_to_float32_adds_no_directions():
    base, experts, _ = family(torch.float32)
    (fact, *_) = CoreSpace().facts(MergeInputs(base, experts, LAMBDAS))
    assert fact == (
        "Core Space: 2 of 3 changed tensors are merged in spaces of at most 8 dimensions"
    )


def test_matrices_of_full_rank_are_merged_as_they_are():
    torch.manual_seed(0)
    base = {"w": torch.zeros(6, 5), "still": torch.ones(2)}
    experts = [{"w": torch.randn(6, 5), "still": torch.ones(2)} for _ in range(2)]
    close(CoreSpace().merge(base, experts, [1, 1]), TSVM().merge(base, experts, [1, 1]))
    close(CoreSpace().merge(base, [base, base], [1, 1]), base)


def test_the_gradient_of_coefficients():
    base, experts, _ = family()
    method = CoreSpace(TaskArithmetic())
    torch.manual_seed(5)
    gradient = {name: torch.randn_like(one) for name, one in base.items()}
    found = method.pull_back(MergeInputs(base, experts, LAMBDAS), gradient)
    expected = TaskArithmetic().pull_back(MergeInputs(base, experts, LAMBDAS), gradient)
    torch.testing.assert_close(found, expected)


def test_it_searches_what_its_method_does():
    made = CoreSpace(LiNeS(TaskArithmetic()))
    assert list(made.numbers) == ["LiNeS.a", "LiNeS.b"]
    assert made.with_numbers({"LiNeS.a": 0.1}).method.a == 0.1
    assert CoreSpace(TaskArithmetic()).usual_coefficient == 0.3
    assert not CoreSpace(Average()).uses_coefficients


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (DFMerge(), "CoreSpace: method is DFMerge, whose statistics belong to single weights"),
        (SLERP(), "CoreSpace: method is SLERP, which merges weights, not task vectors"),
        (RegMeanPP(), "CoreSpace: method is RegMeanPP, which is calibrated"),
        ("TIES", "CoreSpace: method is 'TIES', but must be a MergeMethod"),
    ],
)
def test_methods_that_have_no_core_space(method, says):
    with pytest.raises(UserError, match=says):
        CoreSpace(method)
