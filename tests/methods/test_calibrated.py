"""Methods that are calibrated on examples: their starts, options and refusals."""

import pytest
import torch

import fmerge
from fmerge.errors import UserError
from fmerge.methods import TIES, Average, FeatCal, Isotropic, RegMean, RegMeanPP, TaskArithmetic
from fmerge.methods.composition import Transformed
from fmerge.methods.layer_fits import Moments
from fmerge.methods.transforms import Trim
from tests.compare import assert_same

BASE = {"w": torch.tensor([1.0, 1.0])}
EXPERTS = [{"w": torch.tensor([2.0, 3.0])}, {"w": torch.tensor([4.0, 1.0])}]


@pytest.mark.parametrize("kind", [RegMeanPP, FeatCal])
@pytest.mark.parametrize("start", [None, TaskArithmetic(), TIES(), Isotropic()])
def test_as_a_formula_it_is_its_start(kind, start):
    expected = (start or Average()).merge(BASE, EXPERTS, [0.2, 0.4])
    assert_same(kind(start).merge(BASE, EXPERTS, [0.2, 0.4]), expected)


def test_it_needs_what_its_start_needs():
    assert RegMeanPP().calibrates and not RegMeanPP().uses_coefficients
    assert RegMeanPP(TaskArithmetic()).uses_coefficients
    assert RegMeanPP(Isotropic()).scale_invariant and not FeatCal().scale_invariant
    assert RegMeanPP(RegMean()).statistic == "gram"
    assert [m.needs_base for m in (RegMeanPP(), RegMeanPP(TIES()), FeatCal())] == [
        False,
        True,
        True,
    ]
    assert not FeatCal(r=0).needs_base and not FeatCal(rho=1).needs_base


def test_buffers_are_merged_as_those_of_its_start():
    buffers = [{"b": torch.tensor([2.0])}, {"b": torch.tensor([4.0])}]
    found = FeatCal().merge_buffers({"b": torch.tensor([9.0])}, buffers, [0.1, 0.1])
    assert_same(found, {"b": torch.tensor([3.0])})
    found = FeatCal(TaskArithmetic()).merge_buffers(
        {"b": torch.tensor([10.0])}, buffers, [0.1, 0.1]
    )
    assert_same(found, {"b": torch.tensor([0.8 * 10 + 0.6])})


def test_an_experts_weight_in_the_fit():
    moments = Moments(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), torch.zeros(2, 2), 7.0)
    assert RegMeanPP().scale(moments) == 1
    assert FeatCal().scale(moments) == pytest.approx(1 / 5)  # a mean, divided by its norm
    empty = Moments(torch.zeros(2, 2), torch.zeros(2, 2), 7.0)
    assert FeatCal().scale(empty) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeatCal("TIES"), "FeatCal: start is 'TIES', but must be a MergeMethod; give an"),
        (lambda: FeatCal(RegMeanPP()), "FeatCal: start is RegMeanPP, which is calibrated itself"),
        (lambda: FeatCal(a=1.5), r"a: is 1.5, but must lie in \[0, 1\]"),
        (lambda: FeatCal(rho=-1.0), r"rho: is -1.0, but must lie in \[0, inf\)"),
        (lambda: FeatCal(r=float("nan")), r"r: is nan, but must lie in \[0, inf\)"),
        (lambda: RegMeanPP(off_diagonal=2.0), r"off_diagonal: is 2.0, but must lie in \[0, 1\]"),
        (lambda: Transformed(Trim(0.2, False), FeatCal()), "put the transform into its start"),
        (lambda: fmerge.merge(EXPERTS, RegMeanPP()), "method: RegMeanPP is calibrated on examples"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
