"""Thin factors against the singular value decomposition of the whole matrix."""

import pytest
import torch

from fmerge.methods.low_rank import nearest_factors, noise_of, thin_svd


def of_rank(rank, rows=90, columns=70, seed=0):
    torch.manual_seed(seed)
    left, right = torch.randn(rows, rank).double(), torch.randn(rank, columns).double()
    return left @ right


@pytest.mark.parametrize("rank", [0, 1, 15, 16, 17, 40, 64])
def test_the_thin_decomposition_is_the_whole_one(rank):
    matrix = of_rank(rank, 300, 280)
    left, values, right = thin_svd(matrix, 1e-9)
    assert len(values) == rank
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix)[:rank])
    torch.testing.assert_close(left * values @ right.T, matrix)
    torch.testing.assert_close(left.T @ left, torch.eye(rank).double())
    torch.testing.assert_close(right.T @ right, torch.eye(rank).double())


def test_small_matrices_are_decomposed_whatever_their_rank():
    matrix = of_rank(5, 5, 9)
    left, values, right = thin_svd(matrix, 1e-9)
    torch.testing.assert_close(left * values @ right.T, matrix)
    assert thin_svd(of_rank(100, 300, 280), 1e-9) is None


def test_what_rounding_leaves_of_a_change_is_its_rank():
    torch.manual_seed(2)
    origin, change = torch.randn(90, 70), 1e-3 * of_rank(4).float()
    expert = origin + change
    found = thin_svd(expert.double() - origin.double(), noise_of(expert))
    assert len(found.values) == 4


@pytest.mark.parametrize("rank", [1, 3, 8, 12])
def test_the_nearest_factors_are_those_of_eckart_and_young(rank):
    matrix = of_rank(8, 20, 12)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    expected = left[:, :rank] * values[:rank] @ right[:rank]
    b, a, share = nearest_factors(matrix, rank, 1e-9)
    assert b.shape == (20, rank) and a.shape == (rank, 12)
    torch.testing.assert_close(b @ a, expected)
    kept = values[:rank].square().sum() / values.square().sum()
    assert share == pytest.approx(float(kept), abs=1e-12)
    torch.testing.assert_close(b.norm(), a.norm())


def test_full_matrices_and_zeros_have_factors_too():
    torch.manual_seed(0)
    matrix = torch.randn(300, 280).double()
    b, a, share = nearest_factors(matrix, 2, 1e-9)
    values = torch.linalg.svdvals(matrix)
    assert share == pytest.approx(float(values[:2].square().sum() / values.square().sum()))
    assert torch.linalg.matrix_norm(matrix - b @ a, 2) == pytest.approx(float(values[2]))
    b, a, share = nearest_factors(torch.zeros(4, 3).double(), 2, 0.0)
    assert share == 1 and not b.any() and not a.any()
