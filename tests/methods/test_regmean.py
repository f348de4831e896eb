"""The regression mean by hand, against least squares, and in its limits."""

import numpy
import pytest
import torch

from fmerge.errors import UserError
from fmerge.methods import Gram, Isotropic, RegMean
from tests.compare import assert_same


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def random(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def problem(experts=3, inputs=5, outputs=4, positions=40):
    """Weights with a bias, and inputs of each expert on another scale."""
    models = [
        {"w": random(outputs, inputs, seed=m), "b": random(outputs, seed=100 + m)}
        for m in range(experts)
    ]
    xs = [(m + 1) * random(positions, inputs, seed=200 + m) for m in range(experts)]
    return models, xs


def grams(xs):
    return [{"w": Gram(x.T @ x)} for x in xs]


def test_two_by_two_by_hand():
    # off-diagonals halved: G₁ = [[2, 1], [1, 2]], G₂ = [[4, 0], [0, 1]]; λ = (½, 1) is (1, 2) / 3:
    # S = G₁ + 2G₂ = [[10, 1], [1, 4]], det 39, S⁻¹ = [[4, −1], [−1, 10]] / 39
    # W₁G₁ + 2W₂G₂ = [[2, 1], [1, 2]] + 2·[[0, 1], [8, 0]] = [[2, 3], [17, 2]]
    # times S⁻¹: [[8 − 3, −2 + 30], [68 − 2, −17 + 20]] / 39
    experts = [{"w": matrix([1, 0], [0, 1]), "b": torch.tensor([3.0, 0.0])}]
    experts.append({"w": matrix([0, 1], [2, 0]), "b": torch.tensor([0.0, 6.0])})
    given = [{"w": Gram(matrix([2, 2], [2, 2]))}, {"w": Gram(matrix([4, 0], [0, 1]))}]
    found = RegMean(off_diagonal=0.5).merge(None, experts, [0.5, 1.0], given)
    assert_same({"w": found["w"]}, {"w": matrix([5, 28], [66, 3]) / 39})
    assert_same({"b": found["b"]}, {"b": torch.tensor([1.0, 4.0])})


@pytest.mark.parametrize("inputs_first", [False, True])
def test_without_shrinking_it_is_least_squares(inputs_first):
    """Σₘ ‖XₘWᵀ − XₘWₘᵀ‖² is least: what numpy finds from the stacked rows themselves."""
    models, xs = problem(inputs=4)  # square: the layout cannot be told by the shape
    targets = numpy.vstack([(x @ one["w"].T).numpy() for x, one in zip(xs, models, strict=True)])
    expected = torch.from_numpy(numpy.linalg.lstsq(numpy.vstack(xs), targets, rcond=None)[0])
    given = [{"w": Gram(x.T @ x, inputs_first)} for x in xs]
    if inputs_first:
        models = [{**one, "w": one["w"].T} for one in models]
    found = RegMean(off_diagonal=1.0).merge(None, models, [0.7] * 3, given)
    assert_same({"w": found["w"]}, {"w": expected if inputs_first else expected.T}, rtol=1e-4)


def test_coefficients_weigh_the_squares():
    models, xs = problem()
    coefficients = [0.2, 0.5, 1.0]
    rows = [(c**0.5) * x for c, x in zip(coefficients, xs, strict=True)]
    targets = numpy.vstack([(x @ one["w"].T).numpy() for x, one in zip(rows, models, strict=True)])
    expected = torch.from_numpy(numpy.linalg.lstsq(numpy.vstack(rows), targets, rcond=None)[0])
    found = RegMean(off_diagonal=1.0).merge(None, models, coefficients, grams(xs))
    assert_same({"w": found["w"]}, {"w": expected.T}, rtol=1e-4)


def test_without_off_diagonals_each_input_is_weighted_by_itself():
    models, xs = problem()
    squares = [x.square().sum(0) for x in xs]
    expected = sum(one["w"] * s for one, s in zip(models, squares, strict=True)) / sum(squares)
    found = RegMean(off_diagonal=0.0).merge(None, models, [1.0] * 3, grams(xs))
    assert_same({"w": found["w"]}, {"w": expected}, atol=1e-5)  # the ridge


def test_limits():
    models, xs = problem()
    method, coefficients, given = RegMean(), [0.2, 0.5, 1.0], grams(xs)
    average = Isotropic().merge(None, models, coefficients)
    equal = method.merge(None, models, coefficients, [given[0]] * 3)
    assert_same(equal, average)
    assert_same(method.merge(None, models, coefficients, [{}] * 3), average)
    assert_same(method.merge(None, models, coefficients, [*given[:2], {}]), average)
    assert_same(method.merge(None, models[:1], [0.3], given[:1]), models[0])
    dropped = method.merge(None, models, [0.2, 0.0, 1.0], given)
    assert_same(dropped, method.merge(None, models[::2], [0.2, 1.0], given[::2]))
    whole = method.merge(None, models, coefficients, given)
    assert_same(method.merge(None, models, [0.1, 0.25, 0.5], given), whole)
    turned = method.merge(None, models[::-1], coefficients[::-1], given[::-1])
    assert_same(turned, whole)
    assert not torch.allclose(whole["w"], average["w"], rtol=0.01)


@pytest.mark.parametrize("off_diagonal", [0.9, 1.0])
def test_where_no_input_points_the_average_stays(off_diagonal):
    """Fewer positions than inputs, an input that is always zero, and no input at all."""
    models, _ = problem(experts=2, inputs=6)
    xs = [random(2, 6, seed=m) for m in range(2)]
    for x in xs:
        x[:, 3] = 0
    average = Isotropic().merge(None, models, [1.0, 0.5])["w"]
    method = RegMean(off_diagonal=off_diagonal)
    found = method.merge(None, models, [1.0, 0.5], grams(xs))
    assert_same({"w": found["w"][:, 3]}, {"w": average[:, 3]})
    if off_diagonal == 1:  # both experts' few rows can be met; the rest of W is the average's
        for x, one in zip(xs, models, strict=True):
            assert_same({"y": x @ found["w"].T}, {"y": x @ one["w"].T}, rtol=1e-3, atol=1e-4)
        beside = torch.linalg.svd(torch.vstack(xs)).Vh[4:]
        assert_same({"y": beside @ found["w"].T}, {"y": beside @ average.T}, rtol=1e-3, atol=1e-4)
    nothing = [{"w": Gram(torch.zeros(6, 6))}] * 2
    assert_same({"w": method.merge(None, models, [1.0, 0.5], nothing)["w"]}, {"w": average})


def test_bfloat16_is_rounded_once_and_inputs_stay():
    models, xs = problem()
    halves = [{name: value.bfloat16() for name, value in one.items()} for one in models]
    before = [{name: value.clone() for name, value in one.items()} for one in halves]
    given = grams(xs)
    kept = [gram["w"].matrix.clone() for gram in given]
    found = RegMean().merge(None, halves, [0.4, 0.5, 0.6], given)
    wide = [{name: value.double() for name, value in one.items()} for one in halves]
    expected = RegMean().merge(None, wide, [0.4, 0.5, 0.6], given)
    assert torch.equal(found["w"], expected["w"].bfloat16())
    assert found["b"].dtype == torch.bfloat16
    for one, other in zip(halves, before, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(gram["w"].matrix, m) for gram, m in zip(given, kept, strict=True))


def test_what_is_refused():
    models, xs = problem()
    with pytest.raises(ValueError, match="needs a Gram matrix by linear layer for each expert"):
        RegMean().merge(None, models, [1.0] * 3)
    with pytest.raises(ValueError, match="must have a positive sum"):
        RegMean().merge(None, models, [0.0] * 3, grams(xs))
    with pytest.raises(ValueError, match=r"needs Grams \(5, 5\) for these weights"):
        RegMean().merge(None, models, [1.0] * 3, grams([x[:, :4] for x in xs]))
    with pytest.raises(UserError, match=r"off_diagonal: is 1.5, but must lie in \[0, 1\]"):
        RegMean(off_diagonal=1.5)
