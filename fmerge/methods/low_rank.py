"""Matrices of low rank, as the changes of LoRA adapters are: thin factors, and the nearest ones."""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 2.0**-23
"""Relative rounding of float32, in which experts are read: θ₀ + ΔW holds ΔW up to this times θ."""

_WIDTH = 16
_SHARE = 4  # of what is no matrix of low rank, a sketch of a quarter costs as much as it may


class Thin(NamedTuple):
    """A singular value decomposition U diag(σ) Vᵀ without its zeros.

    Attributes:
        left: U, (o, k).
        values: σ, (k), from the largest.
        right: V, (i, k).
    """

    left: Tensor
    values: Tensor
    right: Tensor


def thin_svd(matrix: Tensor, noise: float) -> Thin | None:
    """Decomposes a matrix whose rank is low, at the cost of a few products with thin matrices.

    The range is found from products with random vectors, whose number doubles until nothing but
    noise is left (Halko, Martinsson & Tropp 2011, 0909.4061, algorithm 4.1 with its error
    measured). The draws are the same in every call.

    Args:
        matrix: (o, i), in float64.
        noise: Singular values up to this are rounding, and left out.

    Returns:
        The decomposition; None where the rank is above a quarter of min(o, i), and 64.
    """
    rows, columns = matrix.shape
    size = min(rows, columns)
    generator = torch.Generator().manual_seed(0)
    width, basis = min(_WIDTH, size), matrix.new_zeros(rows, 0)
    while True:
        draws = torch.randn(columns, width, generator=generator, dtype=matrix.dtype)
        basis = torch.linalg.qr(matrix @ draws.to(matrix.device)).Q
        core = basis.T @ matrix
        if width == size or torch.linalg.matrix_norm(matrix - basis @ core) <= noise:
            break
        width = min(2 * width, size)
        if width > max(4 * _WIDTH, size // _SHARE):
            return None
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    count = int((values > noise).sum())
    return Thin(basis @ left[:, :count], values[:count], right[:count].T)


def noise_of(weights: Tensor) -> float:
    """Bounds the singular values of what rounding adds to θ₀ + ΔW.

    Args:
        weights: θ₀ + ΔW, in float32.

    Returns:
        ``ROUNDING`` · ‖θ₀ + ΔW‖, which bounds the norm of all rounding errors together.
    """
    return ROUNDING * float(torch.linalg.vector_norm(weights.double()))


def nearest_factors(matrix: Tensor, rank: int, noise: float) -> tuple[Tensor, Tensor, float]:
    """Finds the factors of the nearest matrix of a rank (Eckart & Young 1936).

    Args:
        matrix: ΔW, (o, i), in float64.
        rank: r.
        noise: See ``thin_svd``.

    Returns:
        B (o, r) and A (r, i), of equal norms, with zeros where r exceeds the rank of ΔW; and the
        share of ‖ΔW‖² that B A keeps, 1 of a ΔW of zeros.
    """
    found = thin_svd(matrix, noise)
    if found is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        found = Thin(left, values, right.T)
    count = min(rank, len(found.values))
    roots = found.values[:count].sqrt()
    b, a = matrix.new_zeros(len(matrix), rank), matrix.new_zeros(rank, matrix.shape[1])
    b[:, :count] = found.left[:, :count] * roots
    a[:count] = (found.right[:, :count] * roots).T
    total = float(found.values.square().sum())
    return b, a, float(found.values[:count].square().sum()) / total if total else 1.0
