"""TSV-M, Iso-C, Iso-CTS: diagonal cases by hand, spectra, how shared directions are divided."""

import pytest
import torch

from fmerge.errors import UserError
from fmerge.merging.check_gradient import check_gradient
from fmerge.methods import TSVM, IsoC, IsoCTS, TaskArithmetic
from tests.compare import assert_same


def diagonal(*values):
    return {"w": torch.diag(torch.tensor(values, dtype=torch.float64))}


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def rank(matrix, k):
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :k] * values[:k] @ right[:k]


ZERO = diagonal(0.0, 0.0, 0.0, 0.0)


def test_tsvm_by_hand():
    # r/M = 2 values each: (8, 6) on axes 1, 2 and (4, 2) on axes 3, 4: already orthogonal.
    # The second expert's third value, 1 on axis 1, is cut.
    experts = [diagonal(8.0, 6.0, 0.0, 0.0), diagonal(1.0, 0.0, 4.0, 2.0)]
    expected = diagonal(4.0, 3.0, 1.0, 0.5)
    assert_same(TSVM().merge(ZERO, experts, [0.5, 0.25]), expected)
    doubled = {"w": 2 * expected["w"]}
    assert_same(TSVM(scale=2.0).merge(ZERO, experts, [0.5, 0.25]), doubled)


def test_tsvm_divides_a_shared_direction():
    # axis 1 belongs to both: U = (e₁ e₂ e₁ e₃), so that U⊥ has e₁/√2 twice, as has V⊥:
    # (8 + 4)/2 on axis 1
    experts = [diagonal(8.0, 6.0, 0.0, 0.0), diagonal(4.0, 0.0, 2.0, 0.0)]
    expected = diagonal(6.0, 6.0, 2.0, 0.0)
    assert_same(TSVM().merge(ZERO, experts, [1.0, 1.0]), expected)


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (1, 3)])
def test_tsvm_of_one_expert_is_that_expert(shape):
    base, expert = {"w": gaussian(0, *shape)}, {"w": gaussian(1, *shape)}
    assert_same(TSVM().merge(base, [expert], [1.0]), expert)


@pytest.mark.parametrize("count", [2, 3])
def test_tsvm_of_equal_experts_is_their_leading_part(count):
    base, expert = {"w": gaussian(0, 6, 8)}, {"w": gaussian(1, 6, 8)}
    expected = {"w": base["w"] + rank(expert["w"] - base["w"], 6 // count)}
    assert_same(TSVM().merge(base, [expert] * count, [1.0] * count), expected)


def test_tsvm_is_not_disturbed_by_an_expert_that_did_not_move():
    base, expert = {"w": gaussian(0, 6, 8)}, {"w": gaussian(1, 6, 8)}
    expected = {"w": base["w"] + rank(expert["w"] - base["w"], 3)}
    assert_same(TSVM().merge(base, [base, expert], [1.0, 1.0]), expected)
    assert_same(TSVM().merge(base, [base, base], [1.0, 1.0]), base)


def test_tsvm_makes_the_kept_vectors_orthonormal():
    """The definition by another way: U(UᵀU)^(-1/2), from an eigendecomposition."""
    base = {"w": torch.zeros(9, 6).double()}
    experts = [{"w": gaussian(m, 9, 6)} for m in (1, 2, 3)]
    sides = [], [], []
    for expert in experts:
        left, values, right = torch.linalg.svd(0.7 * expert["w"], full_matrices=False)
        for side, part in zip(sides, (left[:, :2], values[:2], right[:2].T), strict=True):
            side.append(part)
    left, values, right = (torch.cat(side, -1) for side in sides)

    def whiten(columns):
        lengths, axes = torch.linalg.eigh(columns.T @ columns)
        return columns @ axes @ torch.diag(lengths**-0.5) @ axes.T

    expected = {"w": whiten(left) @ torch.diag(values) @ whiten(right).T}
    assert_same(TSVM().merge(base, experts, [0.7] * 3), expected)


def test_iso_c_by_hand():
    # 0.5·8 = 4, 0.5·(−6) = −3, 0.25·4 = 1, 0: a sum of 8 over four directions; signs stay
    experts = [diagonal(8.0, -6.0, 0.0, 0.0), diagonal(0.0, 0.0, 4.0, 0.0)]
    merged = IsoC(scale=0.5).merge(ZERO, experts, [0.5, 0.25])["w"]
    assert_same({"w": merged[:3, :3]}, {"w": diagonal(1.0, -1.0, 1.0)["w"]})


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4)])
def test_the_spectrum_of_iso_c_is_flat(shape):
    base = {"w": gaussian(0, *shape)}
    experts = [{"w": gaussian(m, *shape)} for m in (1, 2, 3)]
    coefficients = [0.2, 0.5, 0.9]
    before = torch.linalg.svdvals(
        TaskArithmetic().merge(base, experts, coefficients)["w"] - base["w"]
    )
    change = IsoC().merge(base, experts, coefficients)["w"] - base["w"]
    assert_same({"s": torch.linalg.svdvals(change)}, {"s": before.mean().expand_as(before)})
    assert_same(IsoC().merge(base, [base, base], [0.5, 0.5]), base)


@pytest.mark.parametrize("method", [TSVM(), IsoC(), IsoCTS()])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 2)])
def test_other_tensors_are_averaged(method, shape):
    base, experts = {"b": gaussian(0, *shape)}, [{"b": gaussian(m, *shape)} for m in (1, 2)]
    # all coefficients one: the mean of the task vectors, which is the mean of the experts
    expected = {"b": (experts[0]["b"] + experts[1]["b"]) / 2}
    assert_same(method.merge(base, experts, [1.0, 1.0]), expected)


def test_tsvm_averages_matrices_with_fewer_values_than_experts():
    base, experts = {"w": gaussian(0, 2, 9)}, [{"w": gaussian(m, 2, 9)} for m in (1, 2, 3)]
    expected = {"w": sum(expert["w"] for expert in experts) / 3}
    assert_same(TSVM().merge(base, experts, [1.0] * 3), expected)


def test_iso_cts_by_hand():
    # r = 4, half of it common: axes 1 and 2 with 8 and 6 + 1; then each expert's largest rest:
    # 4 on axis 3, 3 on axis 4; the 1 of the second is below. σ̄ = (8 + 7 + 4 + 3)/4
    experts = [diagonal(8.0, 1.0, 4.0, 0.0), diagonal(0.0, 6.0, 1.0, 3.0)]
    expected = {"w": 5.5 * torch.eye(4, dtype=torch.float64)}
    assert_same(IsoCTS(share=0.5).merge(ZERO, experts, [1.0, 1.0]), expected)
    halves = IsoCTS(share=0.5, scale=2.0).merge(ZERO, experts, [0.25, 0.25])
    assert_same(halves, {"w": expected["w"] / 2})


def test_iso_cts_shares_a_direction_that_several_experts_add():
    # common: axis 1 with 8 + 8; all three add axis 2, the largest rest of each: σ̄ = (16 + 6)/4,
    # and axis 3 and 4 are nobody's
    one = diagonal(8.0, 2.0, 1.0, 0.0)
    experts = [one, one, diagonal(0.0, 2.0, 0.0, 0.0)]
    expected = diagonal(5.5, 5.5, 0.0, 0.0)
    assert_same(IsoCTS(share=0.25).merge(ZERO, experts, [1.0] * 3), expected)


def iso_cts(matrices, share):
    """The paper's steps for matrices of full rank, with U(UᵀU)^(-1/2) by an eigendecomposition."""
    size = min(matrices[0].shape)
    own = round((size - int(share * size)) / len(matrices))
    common = size - own * len(matrices)
    left, values, right = torch.linalg.svd(sum(matrices), full_matrices=False)
    lefts, kept, rights = [left[:, :common]], [values[:common]], [right[:common].T]
    outside = torch.eye(len(left), dtype=left.dtype) - lefts[0] @ lefts[0].T
    for matrix in matrices:
        left, values, right = torch.linalg.svd(outside @ matrix, full_matrices=False)
        lefts.append(left[:, :own])
        kept.append(values[:own])
        rights.append(right[:own].T)

    def whiten(columns):
        lengths, axes = torch.linalg.eigh(columns.T @ columns)
        return columns @ axes @ torch.diag(lengths**-0.5) @ axes.T

    left, right = whiten(torch.cat(lefts, dim=1)), whiten(torch.cat(rights, dim=1))
    return torch.cat(kept).sum() / size * left @ right.T


@pytest.mark.parametrize("shape", [(10, 10), (10, 14), (14, 10)])
@pytest.mark.parametrize(("share", "count"), [(0.8, 2), (0.5, 3), (0.0, 2), (0.3, 4)])
def test_iso_cts_is_the_papers(share, count, shape):
    base, *experts = [{"w": gaussian(m, *shape)} for m in range(count + 1)]
    coefficients = [1.0, 0.5, 0.7, 0.2][:count]
    vectors = [c * (one["w"] - base["w"]) for c, one in zip(coefficients, experts, strict=True)]
    expected = {"w": base["w"] + iso_cts(vectors, share)}
    assert_same(IsoCTS(share).merge(base, experts, coefficients), expected)


@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (7, 4), (1, 3)])
def test_iso_cts_is_iso_c_where_all_is_common(shape):
    base, *experts = [{"w": gaussian(m, *shape)} for m in range(4)]
    coefficients = [0.2, 0.5, 0.9]
    expected = IsoC().merge(base, experts, coefficients)
    assert_same(IsoCTS(share=1.0).merge(base, experts, coefficients), expected)
    alone = IsoC().merge(base, experts[:1], [0.5])
    assert_same(IsoCTS(share=0.3).merge(base, experts[:1], [0.5]), alone)
    assert_same(IsoCTS().merge(base, [base, base], [0.5, 0.5]), base)


def test_iso_cts_of_more_experts_than_directions():
    # round(6/4) = 2 of each of four would be eight directions of seven
    base, *experts = [{"w": gaussian(m, 7, 9)} for m in range(5)]
    change = IsoCTS(share=0.2).merge(base, experts, [1.0] * 4)["w"] - base["w"]
    values = torch.linalg.svdvals(change)
    assert_same({"s": values}, {"s": values.mean().expand_as(values)})


@pytest.mark.parametrize("method", [TSVM(), IsoC(), IsoCTS(share=0.4)])
def test_turning_inputs_and_outputs_turns_the_merge(method):
    (first, _), (last, _) = (torch.linalg.qr(gaussian(m, n, n)) for m, n in ((8, 6), (9, 9)))
    base, *experts = [{"w": gaussian(m, 6, 9)} for m in range(3)]
    merged = method.merge(base, experts, [0.7, 0.4])["w"]
    turned = [{"w": first @ one["w"] @ last} for one in (base, *experts)]
    found = method.merge(turned[0], turned[1:], [0.7, 0.4])
    assert_same(found, {"w": first @ merged @ last})


def test_iso_cts_has_no_gradient():
    with pytest.raises(UserError, match="IsoCTS cannot be learned .singular vectors of equal"):
        check_gradient(IsoCTS(), "--optimizer.learn")
