"""Methods that transform task vectors and leave the merge to another method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from typing import Any

from torch import Tensor

from fmerge.errors import UserError
from fmerge.methods.base import MergeMethod, constructor_call
from fmerge.methods.inputs import MergeInputs, VectorMap
from fmerge.params import Params


class Transform(ABC):
    """A map of task vectors, τ̂ₘ = T(τₘ), that a method can be composed with."""

    def __repr__(self) -> str:
        return constructor_call(self)

    @abstractmethod
    def prepare(self, inputs: MergeInputs) -> VectorMap:
        """Prepares the map of single tensors, such as by a threshold over a whole task vector.

        Args:
            inputs: The models; their task vectors have gone through the transforms before this.
                ``inputs.places`` holds every tensor's role and depth.

        Returns:
            The map; it must return new tensors, or the given one unchanged, and must not depend
            on the order of its calls.
        """


class Transformed(MergeMethod):
    """A method on transformed task vectors: θ = method(θ₀, θ₀ + T(τ₁), …, θ₀ + T(τ_M); λ).

    It is a method itself, so that compositions nest: in ``Transformed(S, Transformed(T, method))``
    S comes first. What the method needs and how its coefficients act is the inner method's.
    Statistics are those of the experts as they are given.

    Args:
        transform: T, applied to every task vector.
        method: The method that merges the transformed task vectors.

    Raises:
        UserError: If one of them is no such object.
    """

    needs_base = True  # a task vector is τ = θ − θ₀

    def __init__(self, transform: Transform, method: MergeMethod) -> None:
        for name, given, kind in (
            ("transform", transform, Transform),
            ("method", method, MergeMethod),
        ):
            if not isinstance(given, kind):
                raise UserError(
                    f"{type(self).__name__}: {name} is {given!r}, but must be a {kind.__name__}; "
                    f"give an object, not a name"
                )
        if method.calibrates:
            raise UserError(
                f"{type(self).__name__}: method is {type(method).__name__}, which is calibrated on "
                "the experts as they are; put the transform into its start"
            )
        self.transform = transform
        self.method = method
        self.statistic = method.statistic
        self.uses_coefficients = method.uses_coefficients
        self.scale_invariant = method.scale_invariant
        self.writes_into_out = method.writes_into_out

    @property
    def numbers(self) -> Mapping[str, tuple[float, float, float]]:
        """What a search may try beside λ: the inner method's."""
        return self.method.numbers

    def with_numbers(self, values: Mapping[str, float]) -> MergeMethod:
        """Gives the inner method other numbers.

        Args:
            values: Numbers by name.

        Returns:
            The composition with that method.
        """
        inner = self.method.with_numbers(values)
        if inner is self.method:
            return self
        made = copy(self)
        made.method = inner
        return made

    def check_count(self, count: int) -> None:
        """Checks that the inner method takes that many experts.

        Args:
            count: M.
        """
        self.method.check_count(count)

    def statistic_scale(self, statistic: Mapping[str, Any]) -> float:
        """Measures a statistic as the inner method does.

        Args:
            statistic: What ``statistic`` names, for one expert.

        Returns:
            The number.
        """
        return self.method.statistic_scale(statistic)

    def facts(self, inputs: MergeInputs) -> list[str]:
        """States what the inner method does.

        Args:
            inputs: The inputs of the merge, checked.

        Returns:
            Its sentences on the transformed task vectors.
        """
        return self.method.facts(inputs.transformed(self.transform.prepare(inputs)))

    def compute(self, inputs: MergeInputs, out: Params | None = None) -> Params:
        """Merges the transformed task vectors.

        Args:
            inputs: The inputs, checked.
            out: See ``MergeMethod.merge``.

        Returns:
            See ``MergeMethod.merge``.
        """
        return self.method.compute(inputs.transformed(self.transform.prepare(inputs)), out)

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Computes ∂L/∂λₘ as the inner method does, which alone has coefficients.

        Args:
            inputs: The inputs of the merge, checked.
            gradient: ∂L/∂θ by tensor.

        Returns:
            One number for each expert (m,), in float64.
        """
        return self.method.pull_back(inputs.transformed(self.transform.prepare(inputs)), gradient)
