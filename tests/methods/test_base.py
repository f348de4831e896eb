"""What every method refuses, in one place: counts and tensors that do not fit the experts."""

import pytest
import torch

from fmerge.methods import (
    DARE,
    TIES,
    Average,
    DFMerge,
    FisherMedian,
    FisherMerge,
    Gram,
    IsoC,
    Isotropic,
    Karcher,
    RegMean,
    TaskArithmetic,
)
from fmerge.methods.composition import Transformed
from fmerge.methods.transforms import Trim
from fmerge.params import Between, logarithms

METHODS = [
    *(Average(), Isotropic(), TaskArithmetic(), FisherMerge(), FisherMedian(), DFMerge(), TIES()),
    *(DARE(), Karcher(), IsoC(), RegMean(), Transformed(Trim(0.5, False), TaskArithmetic())),
]
named = pytest.mark.parametrize("method", METHODS, ids=lambda one: type(one).__name__)


def models(count=3):
    return [{"v": torch.ones(2), "w": m + torch.eye(2)} for m in range(count)]


def statistics(method, count=3):
    if method.statistic == "gram":
        return [{"w": Gram(torch.eye(2))}] * count
    return models(count)


@named
@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_coefficients_is_refused(method, count):
    if not method.uses_coefficients and not count:
        return  # it needs none
    name = type(method).__name__
    with pytest.raises(ValueError) as raised:
        method.merge(models(1)[0], models(), [0.5] * count, statistics(method))
    expected = f"{name}: coefficients: there are {count} for 3 experts; give one per expert"
    assert str(raised.value) == expected


def test_a_method_without_coefficients_needs_none():
    expected = {"v": torch.ones(2), "w": 1 + torch.eye(2)}
    for coefficients in ([], [0.5, 0.1, 0.9]):
        merged = Average().merge(None, models(), coefficients)
        assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "method", [one for one in METHODS if one.statistic], ids=lambda one: type(one).__name__
)
def test_another_number_of_statistics_is_refused(method):
    with pytest.raises(ValueError, match="statistics: there are 2 for 3 experts; give one per"):
        method.merge(models(1)[0], models(), [0.5] * 3, statistics(method, 2))


@pytest.mark.parametrize("method", [FisherMerge(), FisherMedian(), DFMerge()])
def test_a_fisher_that_lacks_a_tensor_is_named(method):
    fishers = models()
    del fishers[1]["w"]
    with pytest.raises(ValueError, match=r"Fisher of expert 2 lacks tensor 'w'$"):
        method.merge(models(1)[0], models(), [0.5] * 3, fishers)
    fishers[1].clear()
    with pytest.raises(ValueError, match=r"Fisher of expert 2 lacks tensor 'v' and 1 more$"):
        method.merge(models(1)[0], models(), [0.5] * 3, fishers)


def test_an_interpolated_fisher_is_looked_up_without_interpolating():
    class Counted(Between):
        def __getitem__(self, name):
            raise AssertionError("the whole tensor was made")

    logs = logarithms(models(1)[0])
    fishers = [Counted(logs, logs, 0.5)] * 3
    merged = DFMerge().merge(models(1)[0], models(), [0.5] * 3, fishers, scales=[1.0] * 3)
    assert list(merged) == ["v", "w"]
    with pytest.raises(ValueError, match="expert 1 lacks tensor 'u'"):
        experts = [one | {"u": torch.ones(1)} for one in models()]
        DFMerge().merge(experts[0], experts, [0.5] * 3, fishers, scales=[1.0] * 3)


def test_weights_without_a_gram_are_no_error():
    merged = RegMean().merge(None, models(), [1.0] * 3, [{}] * 3)
    assert torch.allclose(merged["w"], 1 + torch.eye(2))


@pytest.mark.parametrize("method", [TaskArithmetic(), TIES(), IsoC()])
def test_a_base_or_an_expert_that_lacks_a_tensor_is_named(method):
    base, *experts = models(3)
    short = {"v": torch.ones(2)}
    with pytest.raises(ValueError, match=r"^\w+: the base lacks tensor 'w'$"):
        method.merge(short, experts, [0.5] * 2)
    with pytest.raises(ValueError, match=r"^\w+: expert 2 lacks tensor 'w'$"):
        method.merge(base, [experts[0], short], [0.5] * 2)


@pytest.mark.parametrize(
    "method", [one for one in METHODS if one.statistic], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_scales_is_refused(method, count):
    message = rf"scales: there are {count} for 3 statistics; give one per statistic"
    with pytest.raises(ValueError, match=message):
        method.merge(models(1)[0], models(), [0.5] * 3, statistics(method), scales=[1.0] * count)


@pytest.mark.parametrize("method", [TaskArithmetic(), TIES(), FisherMerge(), FisherMedian()])
def test_a_tensor_of_another_shape_is_named_and_never_broadcast(method):
    base, *experts = models(3)
    given = [] if method.statistic is None else models(2)
    for wrong in (torch.ones(1, 1), torch.ones(2), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"tensor 'w' of expert 2 is .*, but \(2, 2\) in"):
            method.merge(base, [experts[0], {**experts[1], "w": wrong}], [0.5] * 2, given)
        with pytest.raises(ValueError, match=r"tensor 'w' of the base is .*, but \(2, 2\) in"):
            method.merge({**base, "w": wrong}, experts, [0.5] * 2, given)
        if given:
            fishers = [given[0], {**given[1], "w": wrong}]
            with pytest.raises(ValueError, match="tensor 'w' of the Fisher of expert 2 is "):
                method.merge(base, experts, [0.5] * 2, fishers)
