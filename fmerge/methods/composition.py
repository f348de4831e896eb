"""Methods that transform task vectors and leave the merge to another method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from typing import Any

from torch import Tensor

from fmerge.errors import UserError
from fmerge.methods.base import MergeMethod, TensorFormula, constructor_call
from fmerge.methods.inputs import MergeInputs, VectorMap
from fmerge.params import Params


class Transform(ABC):
    """A map of task vectors, τ̂ₘ = T(τₘ), that a method can be composed with.

    Attributes:
        entrywise: Whether an entry of τ̂ₘ depends on that entry of τₘ and on what ``prepare``
            found, and on nothing else.
    """

    entrywise: bool = False

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


class Wrapper(MergeMethod):
    """A method that leaves the formula to another, whose needs and coefficients are its own."""

    @property
    @abstractmethod
    def inner(self) -> MergeMethod:
        """The other method."""

    def take_over(self) -> None:
        """Takes over what the inner method declares, once it is set."""
        self.statistic = self.inner.statistic
        self.uses_coefficients = self.inner.uses_coefficients
        self.scale_invariant = self.inner.scale_invariant
        self.usual_coefficient = self.inner.usual_coefficient
        self.writes_into_out = self.inner.writes_into_out

    def check_count(self, count: int) -> None:
        """Checks that the inner method takes that many experts.

        Args:
            count: M.
        """
        self.inner.check_count(count)

    def statistic_scale(self, statistic: Mapping[str, Any]) -> float:
        """Measures a statistic as the inner method does.

        Args:
            statistic: What ``statistic`` names, for one expert.

        Returns:
            The number.
        """
        return self.inner.statistic_scale(statistic)


def check_kind(owner: MergeMethod, name: str, given: object, kind: type) -> None:
    """Checks that an argument of a method is an object of the kind that it must be.

    Args:
        owner: The method.
        name: The argument's name.
        given: Its value.
        kind: What it must be.

    Raises:
        UserError: If it is none, or a method that chooses among others.
    """
    if not isinstance(given, kind):
        raise UserError(
            f"{type(owner).__name__}: {name} is {given!r}, but must be a {kind.__name__}; "
            "give an object, not a name"
        )
    if isinstance(given, MergeMethod) and given.chooses:
        raise UserError(
            f"{type(owner).__name__}: {name} is {type(given).__name__}, which is no formula but "
            "chooses one by scores; give a method of its portfolio"
        )


class OnTaskVectors(Wrapper):
    """A method that merges by another one, once it has made something else of the task vectors.

    Args:
        method: The other method.

    Raises:
        UserError: If it is none, or is calibrated.
    """

    needs_base = True  # a task vector is τ = θ − θ₀

    def __init__(self, method: MergeMethod) -> None:
        check_kind(self, "method", method, MergeMethod)
        if method.calibrates:
            raise UserError(
                f"{type(self).__name__}: method is {type(method).__name__}, which is calibrated on "
                "the experts as they are; put the transform into its start"
            )
        self.method = method
        self.take_over()

    @property
    def inner(self) -> MergeMethod:
        """The other method."""
        return self.method

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


class Transformed(OnTaskVectors):
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

    def __init__(self, transform: Transform, method: MergeMethod) -> None:
        check_kind(self, "transform", transform, Transform)
        super().__init__(method)
        self.transform = transform
        self.streams = method.streams
        self.entrywise = transform.entrywise and method.entrywise

    def facts(self, inputs: MergeInputs) -> list[str]:
        """States what the inner method does.

        Args:
            inputs: The inputs of the merge, checked.

        Returns:
            Its sentences on the transformed task vectors.
        """
        return self.method.facts(self._transformed(inputs))

    def by_tensor(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares a merge of the transformed task vectors a tensor at a time.

        Args:
            inputs: See ``MergeMethod.by_tensor``.

        Returns:
            The inner method's formula.
        """
        return self.method.by_tensor(self._transformed(inputs))

    def compute(self, inputs: MergeInputs, out: Params | None = None) -> Params:
        """Merges the transformed task vectors.

        Args:
            inputs: The inputs, checked.
            out: See ``MergeMethod.merge``.

        Returns:
            See ``MergeMethod.merge``.
        """
        return self.method.compute(self._transformed(inputs), out)

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Computes ∂L/∂λₘ as the inner method does, which alone has coefficients.

        Args:
            inputs: The inputs of the merge, checked.
            gradient: ∂L/∂θ by tensor.

        Returns:
            One number for each expert (m,), in float64.
        """
        return self.method.pull_back(self._transformed(inputs), gradient)

    def _transformed(self, inputs: MergeInputs) -> MergeInputs:
        return inputs.transformed(self.transform.prepare(inputs), self.transform.entrywise)
