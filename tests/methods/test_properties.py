"""What holds for every method, on random layouts, experts, coefficients and Fishers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmerge import methods
from fmerge.errors import UserError
from fmerge.methods import (
    DARE,
    DELLA,
    SCE,
    SLERP,
    TIES,
    TSVM,
    WUDI,
    Average,
    Breadcrumbs,
    CoreSpace,
    DFMerge,
    FisherMedian,
    FisherMerge,
    FisherTSV,
    Gram,
    Grams,
    IsoC,
    IsoCTS,
    Isotropic,
    Karcher,
    LiNeS,
    MergeMethod,
    ModelStock,
    MultiSLERP,
    NuSLERP,
    RegMean,
    TaskArithmetic,
)
from tests.compare import assert_same

METHODS = {
    "Average": Average(),
    "Isotropic": Isotropic(),
    "TaskArithmetic": TaskArithmetic(),
    "FisherMerge": FisherMerge(favor_target=False),
    "FisherMedian": FisherMedian(),
    "DFMerge": DFMerge(),
    "DFMerge, tempered": DFMerge(alpha=0.5, damping=0.1, normalize=True),
    "TIES": TIES(density=0.4),
    "TIES, per tensor": TIES(density=0.4, per_tensor=True),
    "DARE": DARE(),
    "DARE, elected": DARE(election="ties"),
    "DELLA": DELLA(),
    "Breadcrumbs": Breadcrumbs(bottom=0.3, top=0.1),
    "SLERP": SLERP(),
    "Karcher": Karcher(),
    "TSVM": TSVM(),
    "IsoC": IsoC(),
    "IsoCTS": IsoCTS(share=0.5),
    "WUDI": WUDI(),
    "FisherTSV": FisherTSV(atoms=2),
    "ModelStock": ModelStock(),
    "ModelStock, by row": ModelStock(filter_wise=True),
    "NuSLERP": NuSLERP(),
    "NuSLERP, rows": NuSLERP(along="rows", task_vectors=True),
    "NuSLERP, columns": NuSLERP(along="columns"),
    "MultiSLERP": MultiSLERP(),
    "MultiSLERP, task vectors": MultiSLERP(normalize_weights=False, task_vectors=True),
    "LiNeS": LiNeS(),
    "LiNeS, TIES": LiNeS(TIES(density=0.4), a=0.2, b=0.7),
    "CoreSpace": CoreSpace(),
    "CoreSpace, TIES": CoreSpace(TIES(density=0.4)),
    "SCE": SCE(),
    "SCE, dense": SCE(density=0.5),
}
# the masks depend on the expert's position
SYMMETRIC = [name for name in METHODS if name.partition(",")[0] not in {"DARE", "DELLA"}]
# what drops nothing
FAITHFUL = {
    name: METHODS[name]
    for name in (
        *("Average", "Isotropic", "TaskArithmetic", "FisherMerge", "FisherMedian", "DFMerge"),
        *("DFMerge, tempered", "SLERP", "Karcher", "ModelStock", "ModelStock, by row", "SCE"),
        *("NuSLERP", "NuSLERP, rows", "NuSLERP, columns", "MultiSLERP"),
    )
} | {
    "TIES": TIES(density=1.0),
    "DARE": DARE(drop=0.0),
    "DARE, elected": DARE(drop=0.0, election="ties"),
    "DELLA": DELLA(drop=0.0, epsilon=0.0),
    "Breadcrumbs": Breadcrumbs(bottom=0.0, top=0.0),
}
quick = settings(max_examples=15, deadline=None, derandomize=True, database=None)


@st.composite
def problems(draw, count=None, dtype=torch.float64):
    """A base, experts near it, coefficients of which one is not zero, and Fishers."""
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    shapes = {"w": (rows, columns), "b": (rows,), "s": (), "c": (2, 3, 2)}
    count = count or draw(st.integers(1, 4))

    def model(scale=1.0):
        return {
            name: scale * torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
        }

    base = model()
    experts = []
    for _ in range(count):
        change = model(draw(st.sampled_from([0.0, 1e-6, 0.1, 0.5])))
        experts.append({name: base[name] + change[name] for name in base})
    fishers = [
        {k: v**2 for k, v in model(draw(st.sampled_from([0.0, 1e-5, 1.0]))).items()}
        for _ in range(count)
    ]
    others = [draw(st.sampled_from([0.0, 0.3, 1.0])) for _ in range(count - 1)]
    coefficients = [draw(st.floats(0.05, 1.0)), *others]
    base, *experts = [{k: v.to(dtype) for k, v in one.items()} for one in (base, *experts)]
    return base, experts, coefficients, fishers


def problem(name, dtype=torch.float64):
    return problems(count=2 if "SLERP" in name and "Multi" not in name else None, dtype=dtype)


def copies(*models):
    return [{name: tensor.clone() for name, tensor in model.items()} for model in models]


def test_every_method_is_here():
    named = {getattr(methods, name) for name in methods.__all__}
    named -= {MergeMethod, Gram, Grams, RegMean}  # test_regmean.py: its statistic is another
    named -= {methods.FeatCal, methods.RegMeanPP}  # test_calibrated.py: as formulas their starts
    named -= {methods.Auto}  # test_auto.py: it has no formula
    assert {type(method) for method in METHODS.values()} == named


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(data=st.data())
@quick
def test_results_are_new_finite_and_of_the_same_kind(name, dtype, data):
    base, experts, coefficients, fishers = data.draw(problem(name, dtype))
    before = copies(base, *experts, *fishers)
    merged = METHODS[name].merge(base, experts, coefficients, fishers)
    assert list(merged) == list(base)
    for key, tensor in merged.items():
        assert (tensor.dtype, tensor.shape) == (dtype, base[key].shape)
        assert torch.isfinite(tensor).all()
        tensor.add_(1)
    assert_same_bits([base, *experts, *fishers], before)


@pytest.mark.parametrize("name", [*METHODS, "DELLA, summed", "RegMean"])
def test_tensors_without_entries_or_dimensions_are_merged(name):
    method = {"DELLA, summed": DELLA(election="none"), "RegMean": RegMean()}.get(name)
    method = METHODS[name] if method is None else method
    shapes = {"none": (0,), "rows": (0, 4), "columns": (3, 0), "number": (), "w": (3, 4)}
    generator = torch.Generator().manual_seed(0)
    base, *experts = (
        {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        for _ in range(3)
    )
    measured = [{key: one.abs() for key, one in expert.items()} for expert in experts]
    if method.statistic == "gram":
        measured = [{"rows": Gram(torch.eye(4)), "columns": Gram(torch.zeros(0, 0))}] * 2
    merged = method.merge(base, experts, [0.5, 0.25], measured if method.statistic else None)
    assert {key: tuple(one.shape) for key, one in merged.items()} == shapes
    alone = {key: [one[key] for one in (base, *experts)] for key in ("w", "number")}
    assert all(bool(merged[key].isfinite().all()) for key in alone)


def assert_same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("name", SYMMETRIC)
@given(data=st.data())
@quick
def test_the_order_of_the_experts_is_nothing(name, data):
    base, experts, coefficients, fishers = data.draw(problem(name))
    order = data.draw(st.permutations(range(len(experts))))
    turned = [[rows[m] for m in order] for rows in (experts, coefficients, fishers)]
    expected = METHODS[name].merge(base, experts, coefficients, fishers)
    found = METHODS[name].merge(base, *turned)
    # the mean on the sphere is found to within 1e-6 radians
    assert_same(found, expected, atol=1e-5 if name == "Karcher" else None)


@pytest.mark.parametrize("name", FAITHFUL)
@given(data=st.data())
@quick
def test_equal_experts_give_that_expert(name, data):
    base, experts, coefficients, fishers = data.draw(problem(name))
    same = [experts[0]] * len(experts)
    shares = [coefficient / sum(coefficients) for coefficient in coefficients]
    if name.startswith("DFMerge"):  # its weights need not favour the coefficients
        fishers = [fishers[0]] * len(experts)
    assert_same(FAITHFUL[name].merge(base, same, shares, fishers), experts[0])


@pytest.mark.parametrize("name", METHODS)
@given(data=st.data())
@quick
def test_bfloat16_is_rounded_once_at_the_end(name, data):
    base, experts, coefficients, fishers = data.draw(problem(name, torch.bfloat16))
    fishers = [{k: v.float() for k, v in fisher.items()} for fisher in fishers]
    upcast = [{k: v.double() for k, v in model.items()} for model in (base, *experts)]
    expected = METHODS[name].merge(upcast[0], upcast[1:], coefficients, fishers)
    found = METHODS[name].merge(base, experts, coefficients, fishers)
    assert_same_bits([found], [{k: v.bfloat16() for k, v in expected.items()}])


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_needs_is_what_it_declares(name):
    method = METHODS[name]
    one = {"w": torch.ones(2, 2)}
    if method.needs_base:
        with pytest.raises(ValueError, match="needs the base model"):
            method.merge(None, [one, one], [0.5, 0.5], [one, one])
    else:
        method.merge(None, [one, one], [0.5, 0.5], [one, one])
    if method.statistic is None:
        method.merge(one, [one, one], [0.5, 0.5], None)
    else:
        with pytest.raises(ValueError, match="a diagonal Fisher.* for each expert"):
            method.merge(one, [one, one], [0.5, 0.5], None)


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (TIES, {"density": 1.5}, "density: is 1.5, but must lie in (0, 1]"),
        (TIES, {"density": 0.0}, "density: is 0.0, but must lie in (0, 1]"),
        (TIES, {"density": float("nan")}, "density: is nan, but must lie in (0, 1]"),
        (TIES, {"scale": 0.0}, "scale: is 0.0, but must lie in (0, inf)"),
        (DARE, {"drop": 1.0}, "drop: is 1.0, but must lie in [0, 1)"),
        (DARE, {"scale": float("inf")}, "scale: is inf, but must lie in (0, inf)"),
        (DELLA, {"drop": -0.1}, "drop: is -0.1, but must lie in [0, 1)"),
        (DELLA, {"epsilon": 2.0}, "epsilon: is 2.0, but must lie in [0, 1]"),
        (
            *(DELLA, {"drop": 0.9, "epsilon": 0.3}),
            "epsilon: is 0.3, but drop ± epsilon/2 must lie in [0, 1] and drop is 0.9",
        ),
        (Breadcrumbs, {"bottom": 1.0}, "bottom: is 1.0, but must lie in [0, 1)"),
        (
            *(Breadcrumbs, {"bottom": 0.5, "top": 0.5}),
            "top: is 0.5, but bottom + top must be below 1; bottom is 0.5",
        ),
        (Karcher, {"tolerance": 0.0}, "tolerance: is 0.0, but must lie in (0, inf)"),
        (Karcher, {"max_iterations": 0}, "max_iterations: is 0, but must lie in [1, inf)"),
        (TSVM, {"scale": -1.0}, "scale: is -1.0, but must lie in (0, inf)"),
        (IsoC, {"scale": 0.0}, "scale: is 0.0, but must lie in (0, inf)"),
        (DFMerge, {"alpha": -1.0}, "alpha: is -1.0, but must lie in [0, inf)"),
        (DFMerge, {"damping": -1.0}, "damping: is -1.0, but must lie in [0, inf)"),
        (DFMerge, {"epsilon": -1e-9}, "epsilon: is -1e-09, but must lie in [0, inf)"),
    ],
)
def test_parameters_outside_their_range(kind, parameters, message):
    with pytest.raises(UserError) as raised:
        kind(**parameters)
    assert str(raised.value) == message


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if one.scale_invariant])
@quick
@given(data=st.data())
def test_multiples_of_the_coefficients_are_the_same_merge_where_ratios_alone_count(name, data):
    base, experts, coefficients, fishers = data.draw(problem(name))
    halves = [value / 2 for value in coefficients]
    whole = METHODS[name].merge(base, experts, coefficients, fishers)
    assert_same(METHODS[name].merge(base, experts, halves, fishers), whole)


@pytest.mark.parametrize("name", METHODS)
def test_half_the_coefficients_are_another_merge_elsewhere(name):
    generator = torch.Generator().manual_seed(0)
    base, *models = [{"w": torch.randn(6, 5, generator=generator)} for _ in range(5)]
    experts, fishers = models[:2], [{"w": model["w"] ** 2} for model in models[2:]]
    method = METHODS[name]
    whole, half = (
        method.merge(base, experts, [scale, scale / 4], fishers[:2])["w"] for scale in (0.8, 0.4)
    )
    same = torch.allclose(whole, half, rtol=1e-5, atol=1e-6)
    assert same == (method.scale_invariant or not method.uses_coefficients)
