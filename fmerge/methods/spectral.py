"""Methods on the singular values of task matrices: TSV-M and Iso-C."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fmerge.methods.task_vectors import TaskVectorMethod


class SpectralMethod(TaskVectorMethod):
    """Merges task matrices by their singular vectors, other tensors by averaging.

    θ = θ₀ + s · Δ. For a tensor of two dimensions Δ comes from the matrices λₘτₘ; for any other
    Δ = Σₘ λₘτₘ / M. Δ is homogeneous in λ: coefficients that all equal the papers' α give the
    papers' merge with that α.
    """

    @abstractmethod
    def combine(self, matrices: Sequence[Tensor]) -> Tensor:
        """Merges the task matrices of one tensor.

        Args:
            matrices: λₘτₘ, each of shape (o, i), in the precision of ``wide``.

        Returns:
            Δ, shape (o, i).
        """

    def change(self, vectors: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
        """Computes Δ of one tensor.

        Args:
            vectors: τₘ.
            coefficients: λₘ.

        Returns:
            Δ: of a matrix by ``combine``, of any other tensor the mean.
        """
        scaled = [c * vector for c, vector in zip(coefficients, vectors, strict=True)]
        return self.combine(scaled) if scaled[0].dim() == 2 else _mean(scaled)


class TSVM(SpectralMethod):
    """Task singular vectors, decorrelated (TSV-M: Gargiulo et al., CVPR 2025, algorithm 1).

    Each task matrix λₘτₘ = UₘΣₘVₘᵀ keeps its ⌊r/M⌋ largest singular values, r = min(o, i). The
    kept vectors of all tasks, side by side, are replaced by the nearest orthonormal ones,
    U⊥ = PQᵀ from U = PDQᵀ (V likewise), and Δ = U⊥ΣV⊥ᵀ. Matrices with r < M are averaged.

    Directions whose singular value is rounding noise are left out first, and a direction that
    several tasks share is divided among them. The paper assumes that neither occurs.

    Args:
        scale: Factor s on the merged task matrix, α of the paper.
    """

    def combine(self, matrices: Sequence[Tensor]) -> Tensor:
        """Computes Δ = U⊥ΣV⊥ᵀ; see the class.

        Args:
            matrices: λₘτₘ, each of shape (o, i).

        Returns:
            Δ, shape (o, i).
        """
        rank = min(matrices[0].shape) // len(matrices)
        if rank == 0:
            return _mean(matrices)
        parts = [_significant(matrix, rank) for matrix in matrices]
        left, values, right = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        if not values.numel():
            return torch.zeros_like(matrices[0])
        return (_orthonormal(left) * values) @ _orthonormal(right).T


class IsoC(SpectralMethod):
    """Isotropic merging in the common subspace (Iso-C: Marczak et al., ICML 2025, algorithm 1).

    Σₘ λₘτₘ = UΣVᵀ gets a flat spectrum of the same sum: Δ = σ̄ · UVᵀ, σ̄ = Σₖ σₖ / r with
    r = min(o, i). Directions in which no expert moved get σ̄ too.

    Args:
        scale: Factor s on the merged task matrix, α of the paper.
    """

    def combine(self, matrices: Sequence[Tensor]) -> Tensor:
        """Computes Δ = σ̄ · UVᵀ; see the class.

        Args:
            matrices: λₘτₘ, each of shape (o, i).

        Returns:
            Δ, shape (o, i).
        """
        total = torch.stack(list(matrices)).sum(dim=0)
        left, values, right = torch.linalg.svd(total, full_matrices=False)
        flat: Tensor = values.mean() * (left @ right)
        return flat


def _mean(vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(vectors)).mean(dim=0)


def _significant(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (o, k), σ (k), V (i, k) of the k ≤ rank largest singular values above rounding noise."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    noise = torch.finfo(matrix.dtype).eps * max(matrix.shape) * values[0]
    count = min(rank, int((values > noise).sum()))
    return left[:, :count], values[:count], right[:count].T


def _orthonormal(columns: Tensor) -> Tensor:
    """The matrix PQᵀ of orthonormal columns that is nearest to PDQᵀ, both (n, k)."""
    # where tasks share a direction D has zeros, whose vectors in P and Q are arbitrary: left out
    left, values, right = torch.linalg.svd(columns, full_matrices=False)
    count = int((values > torch.finfo(columns.dtype).eps * max(columns.shape) * values[0]).sum())
    nearest: Tensor = left[:, :count] @ right[:count]
    return nearest
