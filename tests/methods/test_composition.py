"""Methods that take methods: transforms defined elsewhere, nested, and what they hand on."""

import pytest
import torch
from jsonargparse import ArgumentParser

from fmerge.errors import UserError
from fmerge.merging.assembler import Assembler
from fmerge.methods import (
    DARE,
    DELLA,
    SLERP,
    TIES,
    TSVM,
    Average,
    Breadcrumbs,
    DFMerge,
    FisherMedian,
    FisherMerge,
    Gram,
    Isotropic,
    MergeMethod,
    RegMean,
    TaskArithmetic,
)
from fmerge.methods.composition import Transform, Transformed
from fmerge.methods.task_vectors import SignElection, WeightedSum
from fmerge.methods.transforms import Drop, DropByRank, MaskOutliers, Trim
from tests.compare import assert_same


class DepthScale(Transform):
    """τ_l · (a + b · l): a transform that the package does not know."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def prepare(self, inputs):
        def scaled(m, name, vector):
            place = inputs.places[name]
            return vector if place.depth is None else (self.a + self.b * place.depth) * vector

        return scaled


NAMES = ("embed.weight", "layer.0.w", "layer.1.w", "layer.2.w")
FACTORS = (1.0, 0.5, 2.0, 3.5)  # a = 0.5, b = 1.5
SCALE = DepthScale(0.5, 1.5)


def model(*rows):
    return {
        name: torch.tensor(row, dtype=torch.float64) for name, row in zip(NAMES, rows, strict=True)
    }


BASE = model([1.0, 2.0], [0.0, 0.0], [1.0, -1.0], [4.0, 4.0])
VECTORS = [
    model([2.0, 1.0], [4.0, -2.0], [2.0, 4.0], [-2.0, 2.0]),
    model([4.0, -3.0], [2.0, 6.0], [-1.0, 2.0], [2.0, 4.0]),
]
EXPERTS = [{name: BASE[name] + vector[name] for name in NAMES} for vector in VECTORS]


def squares(models):
    return [{name: 0.1 + tensor**2 for name, tensor in one.items()} for one in models]


def scaled_experts():
    return [
        {name: BASE[name] + f * vector[name] for name, f in zip(NAMES, FACTORS, strict=True)}
        for vector in VECTORS
    ]


def test_a_transform_over_task_arithmetic_by_hand():
    # λ = (½, ¼): ½τ₁ + ¼τ₂ = (2, −¼), (2.5, ½), (¾, 2.5), (−½, 2), times the factors, plus θ₀
    merged = Transformed(SCALE, TaskArithmetic()).merge(BASE, EXPERTS, [0.5, 0.25])
    expected = model([3.0, 1.75], [1.25, 0.25], [2.5, 4.0], [2.25, 11.0])
    assert_same(merged, expected)


def test_a_transform_over_ties_by_hand():
    # scaled: (2, 1 | 2, −1 | 4, 8 | −7, 7) and (4, −3 | 1, 3 | −2, 4 | 7, 14); the 3 largest of
    # 8 stay: 8, −7, 7 and 4 (twice), 7, 14; λ = (½, ¼) elects −3.5 + 1.75 < 0, and
    # (½·7 + ¼·14) / ¾ = 28/3, (½·8 + ¼·4) / ¾ = 20/3
    merged = Transformed(SCALE, TIES(density=3 / 8)).merge(BASE, EXPERTS, [0.5, 0.25])
    expected = model([5.0, 2.0], [0.0, 0.0], [1.0, -1 + 20 / 3], [4 - 7.0, 4 + 28 / 3])
    assert_same(merged, expected)
    # the other way round: the unscaled vectors are trimmed, and what is left is scaled
    turned = Transformed(Trim(3 / 8, False), Transformed(SCALE, SignElection()))
    assert not torch.allclose(
        turned.merge(BASE, EXPERTS, [0.5, 0.25])["embed.weight"], merged["embed.weight"]
    )


@pytest.mark.parametrize(
    "method",
    [
        *(TaskArithmetic(), TIES(density=0.4), TIES(density=0.4, per_tensor=True), DARE(), TSVM()),
        *(Average(), Isotropic(), FisherMerge(), FisherMedian(), DFMerge(), SLERP(), DELLA()),
        Breadcrumbs(bottom=0.5),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_composition_is_the_method_on_transformed_experts(method):
    statistics = squares(VECTORS) if method.statistic else None
    expected = method.merge(BASE, scaled_experts(), [0.5, 0.25], statistics)
    merged = Transformed(SCALE, method).merge(BASE, EXPERTS, [0.5, 0.25], statistics)
    assert_same(merged, expected)


def test_transforms_nest_outermost_first():
    half = DepthScale(0.5, 0.0)
    twice = Transformed(half, Transformed(half, TaskArithmetic()))
    once = Transformed(DepthScale(0.25, 0.0), TaskArithmetic())
    coefficients = [0.5, 0.25]
    assert_same(twice.merge(BASE, EXPERTS, coefficients), once.merge(BASE, EXPERTS, coefficients))


@pytest.mark.parametrize(
    ("method", "transform", "inner"),
    [
        (TIES(0.4, 0.7), Trim(0.4, False), SignElection(0.7)),
        (DARE(0.3, 5, "ties", 0.9), Drop(0.3, 5), SignElection(0.9)),
        (DARE(0.3, 5), Drop(0.3, 5), WeightedSum()),
        (DELLA(0.4, 0.1, 2), DropByRank(0.4, 0.1, 2), SignElection()),
        (Breadcrumbs(0.3, 0.1, "none", 1.3), MaskOutliers(0.3, 0.1), WeightedSum(1.3)),
    ],
    ids=["TIES", "DARE, elected", "DARE", "DELLA", "Breadcrumbs"],
)
def test_sparse_methods_are_compositions_to_the_bit(method, transform, inner):
    expected = method.merge(BASE, EXPERTS, [0.5, 0.25])
    merged = Transformed(transform, inner).merge(BASE, EXPERTS, [0.5, 0.25])
    assert_same(merged, expected, rtol=0, atol=0)
    assert method.scale_invariant == inner.scale_invariant


@pytest.mark.parametrize(
    "inner",
    [Average(), TaskArithmetic(), TIES(), DARE(), DARE(election="ties"), SLERP(), FisherMerge()]
    + [DFMerge(), RegMean(), TSVM()],
    ids=lambda method: type(method).__name__,
)
def test_what_a_composition_needs_is_the_inner_methods(inner):
    composed = Transformed(DepthScale(1.0, 0.0), inner)
    for attribute in ("statistic", "uses_coefficients", "scale_invariant", "writes_into_out"):
        assert getattr(composed, attribute) == getattr(inner, attribute), attribute
    assert composed.needs_base  # of any inner method: a task vector starts there
    fisher = {"w": torch.tensor([3.0, 4.0])}
    assert composed.statistic_scale(fisher) == inner.statistic_scale(fisher)
    with pytest.raises(ValueError, match="Transformed needs the base model"):
        composed.merge(None, EXPERTS, [0.5, 0.5], [{}, {}])


def test_the_inner_method_has_a_say_in_the_number_of_experts():
    with pytest.raises(UserError, match="SLERP merges two experts, but there are 3"):
        Transformed(SCALE, SLERP()).merge(BASE, [*EXPERTS, BASE], [0.5, 0.2, 0.3])


def test_grams_reach_the_inner_method():
    base, expert = {"layer.0.w": torch.zeros(2, 2)}, {"layer.0.w": torch.eye(2)}
    grams = [{"layer.0.w": Gram(torch.eye(2))}, {"layer.0.w": Gram(3 * torch.eye(2))}]
    # W = (0 · I + ½ · 3I) (4I)⁻¹: a quarter of what the scaled second expert has
    merged = Transformed(DepthScale(0.5, 0.0), RegMean()).merge(
        base, [base, expert], [1.0, 1.0], grams
    )
    assert_same(merged, {"layer.0.w": 0.375 * torch.eye(2)}, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "inner", [TaskArithmetic(), Isotropic(), SLERP(), TIES()], ids=lambda one: type(one).__name__
)
def test_transformed_weights_are_rounded_once(dtype, inner):
    base, *experts = [
        {name: tensor.to(dtype) + 1 / 3 for name, tensor in one.items()} for one in (BASE, *EXPERTS)
    ]
    wide = [{name: tensor.float() for name, tensor in one.items()} for one in (base, *experts)]
    method = Transformed(DepthScale(0.3, 0.1), inner)
    expected = method.merge(wide[0], wide[1:], [0.5, 0.25])
    merged = method.merge(base, experts, [0.5, 0.25])
    assert all(torch.equal(merged[name], expected[name].to(dtype)) for name in NAMES)


@pytest.mark.parametrize(
    "inner", [TaskArithmetic(), TIES(per_tensor=True)], ids=lambda one: type(one).__name__
)
def test_a_group_of_tensors_knows_the_depth_of_the_whole_model(inner):
    class Relative(Transform):
        def prepare(self, inputs):
            return lambda m, name, vector: vector * inputs.places[name].layers

    method = Transformed(Relative(), inner)
    parts = {"low": list(NAMES[:2]), "high": list(NAMES[2:])}
    experts = dict(zip("ab", EXPERTS, strict=True))
    grouped = Assembler(method, BASE, experts, None, None, parts).assemble({
        "a/low": 0.5, "a/high": 0.5, "b/low": 0.25, "b/high": 0.25
    })  # fmt: skip
    assert_same(grouped, method.merge(BASE, EXPERTS, [0.5, 0.25]))
    # 3 layers, of which the lower group has only the first; the embedding has none
    vector = 3 * TaskArithmetic().merge(BASE, EXPERTS, [0.5, 0.25])["layer.0.w"]
    if isinstance(inner, TaskArithmetic):
        assert_same({"w": grouped["layer.0.w"]}, {"w": vector})  # θ₀ is 0 there
    assert torch.equal(grouped["embed.weight"], BASE["embed.weight"])


def test_a_composition_over_an_elementwise_method_writes_over_the_last_merge():
    method = Transformed(SCALE, TaskArithmetic())
    assembler = Assembler(method, BASE, dict(zip("ab", EXPERTS, strict=True)), None)
    first = assembler.assemble({"a": 0.5, "b": 0.25})["layer.1.w"].data_ptr()
    second = assembler.assemble({"a": 0.5, "b": 0.5})
    assert second["layer.1.w"].data_ptr() == first
    assert_same(second, method.merge(BASE, EXPERTS, [0.5, 0.5]), rtol=0, atol=0)


def test_a_composition_can_be_written_on_the_command_line():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(MergeMethod, "method")
    given = [
        "--method=fmerge.methods.composition.Transformed",
        "--method.transform=fmerge.methods.transforms.MaskOutliers",
        *("--method.transform.bottom=0", "--method.transform.top=0.01"),
        *("--method.method=TSVM", "--method.method.scale=0.5"),
    ]
    method = parser.instantiate(parser.parse_args(given)).method
    expected = Transformed(MaskOutliers(0.0, 0.01), TSVM(0.5))
    assert (
        repr(method)
        == repr(expected)
        == ("Transformed(transform=MaskOutliers(bottom=0.0, top=0.01), method=TSVM(scale=0.5))")
    )
    merged, wanted = (one.merge(BASE, EXPERTS, [0.5, 0.25]) for one in (method, expected))
    assert_same(merged, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("transform", "method", "message"),
    [
        ("Trim", TaskArithmetic(), "Transformed: transform is 'Trim', but must be a Transform"),
        (Trim(0.5, False), "TIES", "Transformed: method is 'TIES', but must be a MergeMethod"),
        (TaskArithmetic(), TaskArithmetic(), r"transform is TaskArithmetic\(\), but must be a Tr"),
    ],
)
def test_names_are_no_objects(transform, method, message):
    with pytest.raises(UserError, match=message):
        Transformed(transform, method)
