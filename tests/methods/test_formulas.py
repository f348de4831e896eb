"""Every formula against numbers worked out by hand, and against its limits."""

import pytest
import torch

from fmerge.methods import Average, DFMerge, FisherMerge, Isotropic, TaskArithmetic
from tests.compare import assert_same


def params(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


BASE = params(1.0, 1.0, 2.0)
EXPERTS = [params(2.0, 3.0, 0.0), params(4.0, 1.0, 6.0)]
FISHERS = [params(1.0, 0.0, 3.0), params(3.0, 2.0, 1.0)]


def test_average():
    assert_same(Average().merge(None, EXPERTS, []), params(3.0, 2.0, 3.0))


def test_isotropic():
    # (0.25·2 + 0.75·4, 0.25·3 + 0.75·1, 0.25·0 + 0.75·6); scaling both coefficients is no change
    expected = params(3.5, 1.5, 4.5)
    assert_same(Isotropic().merge(None, EXPERTS, [0.25, 0.75]), expected)
    assert_same(Isotropic().merge(None, EXPERTS, [0.1, 0.3]), expected)


def test_task_arithmetic():
    # 1 + 0.5·1 + 0.25·3,  1 + 0.5·2 + 0.25·0,  2 + 0.5·(−2) + 0.25·4
    assert_same(TaskArithmetic().merge(BASE, EXPERTS, [0.5, 0.25]), params(2.25, 2.0, 2.0))


def test_fisher_merge():
    plain = FisherMerge(floor=0.0, favor_target=False, normalize=False)
    # λ = (0.5, 0.25): (0.5·1·2 + 0.25·3·4)/(0.5 + 0.75), (0 + 0.25·2·1)/(0.5),
    # (0 + 0.25·1·6)/(1.5 + 0.25)
    expected = params(4 / 1.25, 1.0, 1.5 / 1.75)
    assert_same(plain.merge(None, EXPERTS, [0.5, 0.25], FISHERS), expected)


def test_fisher_merge_divides_the_coefficients_by_the_norms():
    # ‖(1, 0, 3)‖ = √10, ‖(3, 2, 1)‖ = √14
    a, b = 0.5 / 10**0.5, 0.25 / 14**0.5
    expected = params((2 * a + 12 * b) / (a + 3 * b), 1.0, 6 * b / (3 * a + b))
    merged = FisherMerge(floor=0.0, favor_target=False).merge(None, EXPERTS, [0.5, 0.25], FISHERS)
    assert_same(merged, expected)


def test_fisher_merge_floors():
    fishers = [params(0.0, 1.0, 1.0), params(0.0, 0.0, 1.0)]
    favoured = FisherMerge(floor=0.5, favor_target=True, normalize=False)
    # target floored alone: (0.5·2)/0.5 = 2; (1·3)/1 = 3; (0 + 6)/2 = 3
    assert_same(favoured.merge(None, EXPERTS, [1.0, 1.0], fishers), params(2.0, 3.0, 3.0))
    both = FisherMerge(floor=0.5, favor_target=False, normalize=False)
    # (0.5·2 + 0.5·4)/1 = 3; (1·3 + 0.5·1)/1.5; (0 + 6)/2
    assert_same(both.merge(None, EXPERTS, [1.0, 1.0], fishers), params(3.0, 3.5 / 1.5, 3.0))


def test_fisher_merge_keeps_something_where_nobody_knows():
    none = [params(0.0, 0.0, 0.0), params(0.0, 1.0, 0.0)]
    bare = FisherMerge(floor=0.0, favor_target=False, normalize=False)
    assert_same(bare.merge(BASE, EXPERTS, [0.5, 0.5], none), params(1.0, 1.0, 2.0))
    assert_same(bare.merge(None, EXPERTS, [0.5, 0.5], none), params(2.0, 1.0, 0.0))
    favoured = FisherMerge()
    assert_same(favoured.merge(BASE, EXPERTS, [0.0, 0.5], none), params(2.0, 1.0, 0.0))


def test_df_merge():
    # M = 2, λ = (0.5, 0.25): 1 + 2·(1·0.5·1 + 3·0.25·3)/4, 1 + 2·(0 + 2·0.25·0)/2,
    # 2 + 2·(3·0.5·(−2) + 1·0.25·4)/4
    expected = params(1 + 2 * 2.75 / 4, 1.0, 2 + 2 * -2.0 / 4)
    assert_same(DFMerge().merge(BASE, EXPERTS, [0.5, 0.25], FISHERS), expected)


def test_df_merge_tempered():
    # means 4/3 and 2; F/mean + ½ = (1.25, 0.5, 2.75) and (2, 1.5, 1), squared:
    # (1.5625, 0.25, 7.5625) and (4, 2.25, 1); τ = (1, 2, −2) and (3, 0, 4), λτ = half and quarter
    tempered = DFMerge(epsilon=0.0, alpha=2.0, damping=0.5, normalize=True)
    expected = params(
        1 + 2 * (1.5625 * 0.5 + 4 * 0.75) / 5.5625,
        1 + 2 * (0.25 * 1.0) / 2.5,
        2 + 2 * (7.5625 * -1.0 + 1 * 1.0) / 8.5625,
    )
    assert_same(tempered.merge(BASE, EXPERTS, [0.5, 0.25], FISHERS), expected)


def test_df_merge_damped():
    # F + ½·mean, the means 4/3 and 2: (5/3, 2/3, 11/3) and (4, 3, 2)
    expected = params(
        1 + 2 * (5 / 3 * 0.5 + 4 * 0.75) / (17 / 3),
        1 + 2 * (2 / 3 * 1.0) / (11 / 3),
        2 + 2 * (11 / 3 * -1.0 + 2 * 1.0) / (17 / 3),
    )
    damped = DFMerge(epsilon=0.0, damping=0.5)
    assert_same(damped.merge(BASE, EXPERTS, [0.5, 0.25], FISHERS), expected)


# limits


def test_df_merge_of_power_zero_is_task_arithmetic_to_the_bit():
    experts = [{"w": torch.randn(50, generator=torch.Generator().manual_seed(m))} for m in range(4)]
    fishers = [{"w": expert["w"] ** 2} for expert in experts]
    coefficients = [0.1, 0.7, 0.3]
    expected = TaskArithmetic().merge(experts[0], experts[1:], coefficients)
    merged = DFMerge(alpha=0.0).merge(experts[0], experts[1:], coefficients, fishers[1:])
    assert_same(merged, expected, rtol=0, atol=0)
    # and the powers go there
    near = DFMerge(alpha=1e-7).merge(experts[0], experts[1:], coefficients, fishers[1:])
    assert_same(near, expected, rtol=1e-4)
    away = DFMerge(alpha=1.0).merge(experts[0], experts[1:], coefficients, fishers[1:])
    assert not torch.allclose(away["w"], expected["w"], rtol=1e-2)


def test_df_merge_with_damping_goes_from_the_paper_to_task_arithmetic():
    paper = DFMerge().merge(BASE, EXPERTS, [0.5, 0.25], FISHERS)
    little = DFMerge(damping=1e-12).merge(BASE, EXPERTS, [0.5, 0.25], FISHERS)
    assert_same(little, paper)
    much = DFMerge(damping=1e12, normalize=True).merge(BASE, EXPERTS, [0.5, 0.25], FISHERS)
    assert_same(much, TaskArithmetic().merge(BASE, EXPERTS, [0.5, 0.25]))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_df_merge_normalized_ignores_the_scale_of_a_fisher(alpha):
    scaled = [{"w": 1e4 * FISHERS[0]["w"]}, FISHERS[1]]
    method = DFMerge(epsilon=0.0, alpha=alpha, normalize=True)
    expected = method.merge(BASE, EXPERTS, [0.5, 0.25], FISHERS)
    assert_same(method.merge(BASE, EXPERTS, [0.5, 0.25], scaled), expected)


def test_an_expert_without_information_weighs_nothing_however_damped():
    none = [params(0.0, 0.0, 0.0), FISHERS[1]]
    # M = 2 times the second expert's λτ alone
    expected = params(1 + 2 * 0.75, 1.0, 2 + 2 * 1.0)
    merged = DFMerge(epsilon=0.0, damping=0.5).merge(BASE, EXPERTS, [0.5, 0.25], none)
    assert_same(merged, expected)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_equal_fishers_give_the_isotropic_average(scale):
    equal = [params(scale, scale, scale)] * 2
    expected = Isotropic().merge(None, EXPERTS, [0.2, 0.6])
    for normalize in (False, True):
        method = FisherMerge(floor=0.0, normalize=normalize)
        assert_same(method.merge(None, EXPERTS, [0.2, 0.6], equal), expected)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1.0, 1e6])
def test_df_merge_with_equal_fishers_is_task_arithmetic(scale):
    equal = [params(scale, scale, scale)] * 2
    expected = TaskArithmetic().merge(BASE, EXPERTS, [0.2, 0.6])
    assert_same(DFMerge().merge(BASE, EXPERTS, [0.2, 0.6], equal), expected)


def test_one_fisher_zero_gives_the_other_model():
    fishers = [params(0.0, 0.0, 0.0), params(1.0, 2.0, 3.0)]
    method = FisherMerge(floor=0.0, favor_target=False)
    assert_same(method.merge(None, EXPERTS, [0.5, 0.5], fishers), EXPERTS[1])


def test_zero_coefficients_give_the_base():
    assert_same(TaskArithmetic().merge(BASE, EXPERTS, [0.0, 0.0]), BASE)
    assert_same(DFMerge().merge(BASE, EXPERTS, [0.0, 0.0], FISHERS), BASE)


def test_one_expert_alone():
    for method in (Isotropic(), FisherMerge(floor=0.0), TaskArithmetic()):
        merged = method.merge(BASE, EXPERTS, [1.0, 0.0], FISHERS)
        same = method.merge(BASE, EXPERTS[:1], [1.0], FISHERS[:1])
        if isinstance(method, FisherMerge):  # its first Fisher is zero in one entry
            assert merged["w"][[0, 2]].tolist() == same["w"][[0, 2]].tolist() == [2.0, 0.0]
        else:
            assert_same(merged, EXPERTS[0])


def test_df_merge_without_epsilon_keeps_the_base_where_nobody_knows():
    none = [params(0.0, 1.0, 0.0), params(0.0, 0.0, 1.0)]
    # 1; 1 + 2·0.5·2; 2 + 2·0.5·4
    assert_same(DFMerge(epsilon=0.0).merge(BASE, EXPERTS, [0.5, 0.5], none), params(1, 3, 6))


def test_inputs_are_only_read_and_outputs_share_no_memory():
    for method in (Average(), Isotropic(), TaskArithmetic(), FisherMerge(), DFMerge()):
        before = [{k: v.clone() for k, v in p.items()} for p in [BASE, *EXPERTS, *FISHERS]]
        merged = method.merge(BASE, EXPERTS, [0.5, 0.5], FISHERS)
        merged["w"].add_(1)
        for kept, now in zip(before, [BASE, *EXPERTS, *FISHERS], strict=True):
            assert_same(now, kept, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "base", "coefficients", "fishers", "message"),
    [
        (Isotropic(), None, [0.0, 0.0], None, "positive sum"),
        (FisherMerge(), None, [0.0, 0.0], FISHERS, "positive sum"),
        (FisherMerge(), None, [1.0, 1.0], None, "a diagonal Fisher for each expert"),
        (TaskArithmetic(), None, [1.0, 1.0], None, "base"),
        (DFMerge(), BASE, [1.0, 1.0], None, "Fisher"),
    ],
)
def test_what_a_method_lacks_is_said(method, base, coefficients, fishers, message):
    with pytest.raises(ValueError, match=message):
        method.merge(base, EXPERTS, coefficients, fishers)


UNKNOWN = torch.tensor([True, False, True, False, False, True])


def sparse_case(dtype=torch.float64, seed=0):
    """Two experts and Fishers of unlike scales, with half of the entries known to neither."""
    generator = torch.Generator().manual_seed(seed)
    base, *experts = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    fishers = [torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2)]
    fishers = [f.masked_fill(UNKNOWN, 0.0) * s for f, s in zip(fishers, (1e-3, 1e-7), strict=True)]
    models = [{"w": one.to(dtype)} for one in (base, *experts)]
    return models[0], models[1:], [{"w": one.to(dtype)} for one in fishers]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_entries_that_no_task_knows_are_task_arithmetic_when_normalized(alpha):
    base, experts, fishers = sparse_case()
    merged = DFMerge(normalize=True, alpha=alpha).merge(base, experts, [0.3, 0.9], fishers)
    plain = TaskArithmetic().merge(base, experts, [0.3, 0.9])
    assert_same({"w": merged["w"][UNKNOWN]}, {"w": plain["w"][UNKNOWN]})
    # elsewhere the shares of each Fisher's mean decide: w = (F/F̄)^α
    w = [(one["w"] / one["w"].mean())[~UNKNOWN] ** alpha for one in fishers]
    t = [(one["w"] - base["w"])[~UNKNOWN] for one in experts]
    expected = base["w"][~UNKNOWN] + 2 * (w[0] * 0.3 * t[0] + w[1] * 0.9 * t[1]) / (w[0] + w[1])
    assert_same({"w": merged["w"][~UNKNOWN]}, {"w": expected}, rtol=1e-8)


def test_a_task_without_any_information_weighs_nothing_where_another_has_some():
    base, experts, fishers = sparse_case()
    fishers[1] = {"w": torch.zeros(6, dtype=torch.float64)}
    merged = DFMerge(normalize=True).merge(base, experts, [0.3, 0.9], fishers)
    plain = TaskArithmetic().merge(base, experts, [0.3, 0.9])
    assert_same({"w": merged["w"][UNKNOWN]}, {"w": plain["w"][UNKNOWN]})
    expected = base["w"] + 2 * 0.3 * (experts[0]["w"] - base["w"])
    assert_same({"w": merged["w"][~UNKNOWN]}, {"w": expected[~UNKNOWN]}, rtol=1e-8)
    nobody = DFMerge(normalize=True).merge(base, experts, [0.3, 0.9], [fishers[1]] * 2)
    assert_same(nobody, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize(
    "method",
    [
        DFMerge(normalize=True),
        DFMerge(normalize=True, damping=0.1, alpha=0.5),
        FisherMerge(floor=0.0, favor_target=False),
    ],
    ids=repr,
)
def test_the_scale_of_a_fisher_does_not_matter_when_normalized(method, scale, dtype):
    base, experts, fishers = sparse_case(dtype)
    expected = method.merge(base, experts, [0.3, 0.9], fishers)
    scaled = [fishers[0], {"w": fishers[1]["w"] * scale}]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    assert_same(method.merge(base, experts, [0.3, 0.9], scaled), expected, rtol=tolerance)


def test_the_plain_rule_stays_as_it_is():
    """ε is added to F itself, as the reference does."""
    base, experts, fishers = sparse_case()
    merged = DFMerge(epsilon=1e-5, damping=0.2).merge(base, experts, [0.3, 0.9], fishers)
    w = [one["w"] + 1e-5 + 0.2 * one["w"].mean() for one in fishers]
    t = [one["w"] - base["w"] for one in experts]
    expected = base["w"] + 2 * (w[0] * 0.3 * t[0] + w[1] * 0.9 * t[1]) / (w[0] + w[1])
    assert_same(merged, {"w": expected})


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, s) for s in (1e-42, 1e-36, 1e-24, 1e-12, 1.0, 1e18, 1e25, 1e37)]
    + [(torch.float64, s) for s in (1e-200, 1e-24, 1.0, 1e25, 1e200)],
)
def test_the_norm_of_a_fisher_neither_vanishes_nor_overflows(dtype, scale):
    fisher = {
        "a": torch.tensor([3.0, 0.0], dtype=torch.float64).mul(scale).to(dtype),
        "empty": torch.zeros(0, dtype=dtype),
        "b": torch.tensor([[4.0]], dtype=torch.float64).mul(scale).to(dtype),
    }
    found = FisherMerge().statistic_scale(fisher)
    assert found / scale == pytest.approx(5.0, rel=1e-3 if scale == 1e-42 else 1e-6)


def test_a_norm_in_range_is_as_before_and_of_zeros_one():
    fisher = {"a": torch.rand(1000), "b": torch.rand(7, 3)}
    norms = torch.stack([torch.linalg.vector_norm(one).double() for one in fisher.values()])
    assert FisherMerge().statistic_scale(fisher) == float(torch.linalg.vector_norm(norms))
    assert FisherMerge().statistic_scale({"a": torch.zeros(3)}) == 1.0
