"""Methods on the sphere of directions: SLERP of two experts, Karcher mean of any number."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fmerge.errors import UserError, check_within
from fmerge.methods.base import TensorFormula, check_positive_sum
from fmerge.methods.inputs import MergeInputs, wide
from fmerge.methods.tensorwise import Tensorwise

_COLINEAR = 1e-6  # sin Ω below which sin(tΩ)/sin Ω loses its digits
_OPPOSITE = 1e-6  # radians from π within which the shortest arc is not defined by the digits


class SLERP(Tensorwise):
    """Spherical linear interpolation of two experts, tensor by tensor (Shoemake 1985).

    θ = sin((1 − t)Ω)/sin Ω · θ₁ + sin(tΩ)/sin Ω · θ₂ with t = λ₂ / (λ₁ + λ₂) and Ω the angle
    between the two tensors, each seen as one vector. Where they are nearly colinear (sin Ω below
    1e-6), opposite, or zero, it is the straight line (1 − t)θ₁ + tθ₂.
    """

    scale_invariant = True

    def check_count(self, count: int) -> None:
        """Checks that there are two experts.

        Args:
            count: M.

        Raises:
            UserError: If it is not 2.
        """
        if count != 2:
            raise UserError(f"SLERP merges two experts, but there are {count}; use Karcher")

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares the point at t = λ₂ / (λ₁ + λ₂) of the arc from θ₁ to θ₂.

        Args:
            inputs: θ₁ and θ₂, and λ₁ and λ₂ ≥ 0, of which only the ratio matters.

        Returns:
            The formula; the coefficients must not sum to zero.
        """
        check_positive_sum(inputs.coefficients)
        t = inputs.coefficients[1] / sum(inputs.coefficients)
        first, second = inputs.weights
        return lambda name: _arc(wide(first[name]), wide(second[name]), t)


class Karcher(Tensorwise):
    """Weighted mean on the sphere, tensor by tensor (Karcher 1977, Riemannian centre of mass).

    With directions uₘ = θₘ/‖θₘ‖ and weights wₘ = λₘ/Σλ, the mean direction u minimises
    Σₘ wₘ ∠(u, uₘ)². It is found by u ← exp_u(Σₘ wₘ log_u(uₘ)), and θ = (Σₘ wₘ‖θₘ‖) · u. Tensors
    that are zero have no direction; a tensor of one entry is averaged.

    Args:
        tolerance: The iteration ends when a step is shorter than this, in radians.
        max_iterations: Steps after which a merge that has not converged is refused.
    """

    scale_invariant = True

    def __init__(self, tolerance: float = 1e-6, max_iterations: int = 100) -> None:
        check_within("tolerance", tolerance, "(0, inf)")
        check_within("max_iterations", max_iterations, "[1, inf)")
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares θ = (Σₘ wₘ‖θₘ‖) · u with u the Karcher mean of the directions.

        Args:
            inputs: θₘ, and λₘ ≥ 0, of which only the ratios matter.

        Returns:
            The formula. It fails where two directions of a tensor are opposite, or where the
            iteration does not converge. The coefficients must not sum to zero.
        """
        check_positive_sum(inputs.coefficients)
        weights = torch.tensor(inputs.coefficients, dtype=torch.float64)
        shares = weights / weights.sum()

        def merged(name: str) -> Tensor:
            try:
                return self._mean([expert[name] for expert in inputs.weights], shares)
            except ValueError as error:
                raise ValueError(f"Karcher: tensor '{name}': {error}") from error

        return merged

    def _mean(self, tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
        # in float64: angles between fine-tuned models are small, and 1 − cos ∠ is their square
        rows = torch.stack([tensor.reshape(-1).double() for tensor in tensors])
        weights = weights.to(rows.device)
        norms = torch.linalg.vector_norm(rows, dim=1)
        counted = (norms > 0) & (weights > 0)
        if rows.shape[1] == 1 or not counted.any():
            return (weights @ rows).reshape(tensors[0].shape)
        units = rows[counted] / norms[counted, None]
        share = weights[counted] / weights[counted].sum()
        direction = self._direction(units @ units.T, share)
        mean: Tensor = (weights @ norms) * (direction @ units)
        return mean.reshape(tensors[0].shape)

    def _direction(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Finds u as a linear combination of the uₘ: u = Σₘ cₘuₘ.

        All steps stay in the span of the uₘ, so that lengths and angles need only the inner
        products G and not the vectors.

        Args:
            gram: G = ⟨uₘ, uₙ⟩, shape (M, M).
            weights: wₘ > 0, which sum to one.

        Returns:
            c, shape (M,).

        Raises:
            ValueError: If a direction is opposite to the mean, or the iteration does not converge.
        """
        point, step = _unit(weights, gram), math.inf
        each = torch.eye(len(weights)).to(gram)
        for _ in range(self.max_iterations):
            cosines = (gram @ point).clamp(-1, 1)
            angles = cosines.acos()
            if angles.max() > math.pi - _OPPOSITE:
                raise ValueError("the experts point in opposite directions, which have no mean")
            # log_u(uₘ) = ∠/sin ∠ · (uₘ − cos ∠ · u)
            stretch = torch.where(angles > 0, angles / angles.sin(), torch.ones_like(angles))
            tangent = (weights * stretch) @ (each - cosines[:, None] * point)
            step = math.sqrt(max(0.0, float(tangent @ gram @ tangent)))
            if step < self.tolerance:
                return point
            point = _unit(math.cos(step) * point + math.sin(step) / step * tangent, gram)
        raise ValueError(
            f"the mean still moves by {step:.1g} radians after {self.max_iterations} steps; "
            "raise max_iterations or tolerance"
        )


def _arc(first: Tensor, second: Tensor, t: float) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor) for tensor in (first, second)]
    if min(norms) == 0:
        return torch.lerp(first, second, t)
    one, two = first / norms[0], second / norms[1]
    # unlike acos of the inner product, exact for small angles
    halves = [float(torch.linalg.vector_norm(side)) for side in (one - two, one + two)]
    angle = 2 * math.atan2(*halves)
    if math.sin(angle) < _COLINEAR:
        return torch.lerp(first, second, t)
    share = [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    return share[0] * first + share[1] * second


def _unit(point: Tensor, gram: Tensor) -> Tensor:
    squared = float(point @ gram @ point)
    if squared < _OPPOSITE**2:
        raise ValueError("the experts' directions cancel, so that they have no mean")
    return point / math.sqrt(squared)
