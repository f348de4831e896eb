"""Methods on the singular values of task matrices: TSV-M, Iso-C and Iso-CTS."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fmerge.errors import check_within
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.layers import Layer, LayerMethod, mean, scaled
from fmerge.methods.task_vectors import TaskVectorMethod
from fmerge.params import Params


class SpectralMethod(TaskVectorMethod):
    """Merges task matrices by their singular vectors, other tensors by averaging.

    θ = θ₀ + s · Δ. For a tensor of two dimensions Δ comes from the matrices λₘτₘ; for any other
    Δ = Σₘ λₘτₘ / M. Δ is homogeneous in λ: coefficients that all equal the papers' α give the
    papers' merge with that α.
    """

    usual_coefficient = 1.0  # whole task vectors

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
        products = scaled(vectors, coefficients)
        return self.combine(products) if products[0].dim() == 2 else mean(products)


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
        atoms = singular_atoms(matrices)
        if atoms is None:
            return mean(matrices)
        left, values, right = (torch.cat(part, dim=-1) for part in atoms)
        if not values.numel():
            return torch.zeros_like(matrices[0])
        return (orthonormal(left) * values) @ orthonormal(right).T


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


class IsoCTS(LayerMethod):
    """Isotropic merging in common and task-specific subspaces (Iso-CTS: Marczak et al., ICML 2025).

    Of r = min(o, i) directions, the leading ones of Σₘ λₘτₘ = UΣVᵀ make the common space; each
    expert adds the n leading ones of λₘτₘ − UUᵀλₘτₘ, U those of the common space:
    n = round((r − ⌊share · r⌋) / M), and the common space has the r − nM that are left. The left
    vectors of all directions are replaced by the nearest orthonormal ones, the right ones
    likewise, and Δ = σ̄ · U⊥V⊥ᵀ with σ̄ the sum of all kept singular values over r. With n = 0 or
    one expert it is ``IsoC``, where no singular value is zero.

    As in the authors' code every matrix is merged so, and any other tensor gets
    Δ = Σₘ λₘτₘ / M. Directions whose singular value is rounding are left out, and one that
    several experts add is theirs together; the paper assumes that neither occurs.

    Args:
        share: Share of the directions that are common.
        scale: Factor s on the merged task matrix, α of the paper.
    """

    def __init__(self, share: float = 0.8, scale: float = 1.0) -> None:
        super().__init__(scale)
        check_within("share", share, "[0, 1]")
        self.share = share

    def combine(self, layer: Layer) -> Tensor:
        """Computes Δ = σ̄ · U⊥V⊥ᵀ; see the class.

        Args:
            layer: τₘ and λₘ.

        Returns:
            Δ, shape (o, i).
        """
        matrices = scaled(layer.vectors, layer.coefficients)
        count, size = len(matrices), min(matrices[0].shape)
        # the paper's rounding, but never more directions than there are
        own = min(round((size - int(size * self.share)) / count), size // count)
        total = torch.stack(matrices).sum(dim=0)
        common = _significant(total, size - own * count)
        parts = [common]
        for matrix in matrices if own else ():
            parts.append(_significant(matrix - common[0] @ (common[0].T @ matrix), own, matrix))
        left, values, right = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        if not values.numel():
            return torch.zeros_like(total)
        return values.sum() / size * (orthonormal(left) @ orthonormal(right).T)

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Refuses to compute ∂L/∂λₘ; see the base class.

        Args:
            inputs: The inputs of the merge.
            gradient: ∂L/∂θ by tensor.

        Raises:
            NotImplementedError: Always.
        """
        # what is left outside of the common space has several singular values of zero, at which
        # the gradient of its singular vectors is not finite
        raise NotImplementedError("singular vectors of equal values have no gradient")


Atoms = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]
"""Of each task matrix its leading left singular vectors (o, k), values (k), right ones (i, k)."""


def singular_atoms(matrices: Sequence[Tensor]) -> Atoms | None:
    """Finds the singular directions that TSV-M keeps.

    Args:
        matrices: λₘτₘ, M matrices of shape (o, i).

    Returns:
        At most ⌊min(o, i) / M⌋ of each matrix, none that is rounding; None where that number is 0.
    """
    rank = min(matrices[0].shape) // len(matrices)
    if rank == 0:
        return None
    left, values, right = zip(*(_significant(matrix, rank) for matrix in matrices), strict=True)
    return left, values, right


def orthonormal(columns: Tensor) -> Tensor:
    """Replaces columns by the nearest orthonormal ones.

    Args:
        columns: PDQᵀ, shape (n, k).

    Returns:
        PQᵀ without the zeros of D, shape (n, k): columns that are the same share a direction.
    """
    # where tasks share a direction D has zeros, whose vectors in P and Q are arbitrary: left out
    left, values, right = torch.linalg.svd(columns, full_matrices=False)
    count = int((values > torch.finfo(columns.dtype).eps * max(columns.shape) * values[0]).sum())
    nearest: Tensor = left[:, :count] @ right[:count]
    return nearest


def _significant(
    matrix: Tensor, rank: int, source: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """U (o, k), σ (k), V (i, k) of the k ≤ rank largest singular values above rounding noise."""
    # the noise of a matrix that was computed from another, its source, is that of the source
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = values[0] if source is None else torch.linalg.matrix_norm(source)
    noise = torch.finfo(matrix.dtype).eps * max(matrix.shape) * largest
    count = min(rank, int((values > noise).sum()))
    return left[:, :count], values[:count], right[:count].T
