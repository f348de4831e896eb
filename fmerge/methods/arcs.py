"""Methods on arcs of task vectors or of weights: NuSLERP and Multi-SLERP."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.methods.base import TensorFormula, check_positive_sum
from fmerge.methods.inputs import MergeInputs, wide
from fmerge.methods.tensorwise import Tensorwise

_COLINEAR = 1e-6  # sin Ω below which sin(tΩ)/sin Ω loses its digits
_CANCELLED = 1e-8  # length of a mean direction below which, as in mergekit, there is none

Reader = Callable[[int, str], Tensor]
"""From m and a tensor's name to the m-th point: a task vector, or weights."""


class _Arcs(Tensorwise):
    """A method on points around θ₀, or around zero.

    Args:
        task_vectors: Whether the points are the τₘ, and θ₀ is added to the result.
    """

    scale_invariant = True

    def __init__(self, task_vectors: bool) -> None:
        self.task_vectors = task_vectors
        self.needs_base = task_vectors

    def _read(self, inputs: MergeInputs, m: int, name: str) -> Tensor:
        if self.task_vectors:
            return inputs.task_vector(m, name)
        return wide(inputs.weights[m][name])

    def _back(self, inputs: MergeInputs, name: str, point: Tensor) -> Tensor:
        return inputs.origin[name] + point if self.task_vectors else point


class NuSLERP(_Arcs):
    """Spherical interpolation of two experts, by row, column or tensor (mergekit's NuSLERP).

    θ = sin((1 − t)Ω)/sin Ω · v₁ + sin(tΩ)/sin Ω · v₂ with t = λ₂ / (λ₁ + λ₂) and Ω the angle
    between v₁ and v₂; where they are nearly colinear (sin Ω below 1e-6), opposite, or zero, it
    is the straight line. Of weights and whole tensors it is ``SLERP``.

    Args:
        along: What one v is: a whole tensor (mergekit's ``nuslerp_flatten``), each of its rows,
            or each of its columns (mergekit's ``nuslerp_row_wise``).
        task_vectors: Interpolate the task vectors, and add θ₀, as mergekit does where a base is
            named; it then needs a base.

    Raises:
        UserError: If ``along`` is none of these.
    """

    def __init__(
        self, along: Literal["tensor", "rows", "columns"] = "tensor", task_vectors: bool = False
    ) -> None:
        super().__init__(task_vectors)
        if along not in {"tensor", "rows", "columns"}:
            raise UserError(f"along: is {along!r}, but must be tensor, rows or columns")
        self.along = along

    def check_count(self, count: int) -> None:
        """Checks that there are two experts.

        Args:
            count: M.

        Raises:
            UserError: If it is not 2.
        """
        if count != 2:
            raise UserError(f"NuSLERP merges two experts, but there are {count}; use MultiSLERP")

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares the points at t = λ₂ / (λ₁ + λ₂) of the arcs from v₁ to v₂.

        Args:
            inputs: θ₁ and θ₂, λ₁ and λ₂ ≥ 0, of which only the ratio matters, and θ₀ for task
                vectors.

        Returns:
            The formula; the coefficients must not sum to zero.
        """
        check_positive_sum(inputs.coefficients)
        t = inputs.coefficients[1] / sum(inputs.coefficients)

        def merged(name: str) -> Tensor:
            first, second = (self._read(inputs, m, name) for m in (0, 1))
            shape = first.shape
            if self.along == "tensor" or len(shape) < 2:
                arc = _arcs(first.reshape(1, -1), second.reshape(1, -1), t).reshape(shape)
            elif self.along == "rows":
                arc = _arcs(first, second, t)
            else:
                arc = _arcs(first.transpose(0, -1), second.transpose(0, -1), t).transpose(0, -1)
            return self._back(inputs, name, arc)

        return merged


class MultiSLERP(_Arcs):
    """Weighted mean direction times the weighted mean length, tensor by tensor (mergekit's).

    θ = Σₘ wₘ‖vₘ‖ · u/‖u‖ with u = Σₘ wₘ vₘ/‖vₘ‖ and wₘ = λₘ/Σλ. mergekit projects the vₘ to the
    tangent space at u/‖u‖ and averages them there; that average is zero for every input, since
    u is their mean, so that one step of ``Karcher`` from u stays at u. Where u is zero, as of two
    opposite vectors of equal weight, θ = Σₘ wₘvₘ.

    Args:
        normalize_weights: wₘ = λₘ/Σλ; otherwise wₘ = λₘ, so that λ scales the length.
        task_vectors: Average the task vectors, and add θ₀, as mergekit does where a base is
            named; it then needs a base.
    """

    def __init__(self, normalize_weights: bool = True, task_vectors: bool = False) -> None:
        super().__init__(task_vectors)
        self.normalize_weights = normalize_weights
        self.scale_invariant = normalize_weights

    @property
    def allows_negative(self) -> bool:
        """No: the λₘ are weights of a mean, whether they are normalized or not."""
        return False

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares θ = Σₘ wₘ‖vₘ‖ · u/‖u‖.

        Args:
            inputs: θₘ, λₘ ≥ 0, and θ₀ for task vectors.

        Returns:
            The formula; the coefficients must not sum to zero.
        """
        check_positive_sum(inputs.coefficients)
        total = sum(inputs.coefficients) if self.normalize_weights else 1.0
        weights = [coefficient / total for coefficient in inputs.coefficients]

        def merged(name: str) -> Tensor:
            points = [self._read(inputs, m, name) for m in range(len(weights))]
            lengths = [torch.linalg.vector_norm(point) for point in points]
            mean, straight = torch.zeros_like(points[0]), torch.zeros_like(points[0])
            for point, length, weight in zip(points, lengths, weights, strict=True):
                straight = straight + weight * point
                if length > 0:
                    mean = mean + weight * (point / length)
            size = torch.linalg.vector_norm(mean)
            if size < _CANCELLED * sum(weights):
                return self._back(inputs, name, straight)
            length = sum(w * one for w, one in zip(weights, lengths, strict=True))
            return self._back(inputs, name, length / size * mean)

        return merged


def _arcs(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The point at t of the arc between each pair of vectors along the last dimension."""
    norms = [torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (first, second)]
    known = (norms[0] > 0) & (norms[1] > 0)
    one, two = (v / torch.where(known, n, 1.0) for v, n in ((first, norms[0]), (second, norms[1])))
    sides = (one - two, one + two)
    # unlike acos of the inner product, exact for small angles
    halves = [torch.linalg.vector_norm(side, dim=-1, keepdim=True).double() for side in sides]
    angle = 2 * torch.atan2(*halves)
    curved = known & (angle.sin() >= _COLINEAR)
    angle = torch.where(curved, angle, 1.0)
    shares = [((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
    kept = [
        torch.where(curved, share, line).to(first)
        for share, line in zip(shares, (1 - t, t), strict=True)
    ]
    return kept[0] * first + kept[1] * second
