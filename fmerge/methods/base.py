"""What every merging method is: a pure formula over named tensors."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from fmerge.methods.convex import convex
from fmerge.methods.input_checks import check_inputs, of_one_dtype
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.roles import Place
from fmerge.params import Params
from fmerge.system.recorded import Recorded

Statistic = Literal["fisher", "moving fisher", "gram"]
"""What a formula may know of an expert beside its weights; see ``MergeMethod.statistic``."""

TensorFormula = Callable[[str], Tensor]
"""From a tensor's name to the merged tensor, in the precision of ``wide``."""

STATISTIC_NAMES = {
    "fisher": "a diagonal Fisher",
    "moving fisher": "a diagonal Fisher at θ₀ + λτ",
    "gram": "a Gram matrix by linear layer",
}
"""What messages call each statistic of an expert."""


class MergeMethod(Recorded, ABC):
    """Turns a base, M experts, M coefficients and M statistics into merged tensors.

    A method declares what it needs and never fetches it. Inputs are only read; letters follow the
    field: θ₀ base, θₘ expert, τₘ = θₘ − θ₀ task vector, λₘ coefficient, Fₘ diagonal Fisher.

    Attributes:
        statistic: What is needed of each expert: ``"fisher"``, its diagonal Fisher at θₘ, once;
            ``"moving fisher"``, that at θ₀ + λₘτₘ, anew for every λ; ``"gram"``, a ``Gram`` of
            the inputs of each linear layer at θₘ, once; ``None``: nothing.
        needs_base: Whether the formula uses θ₀.
        uses_coefficients: Whether λ changes the result, so that a search makes sense.
        scale_invariant: Whether only the ratios of the λₘ matter, so that c·λ is the same merge.
        usual_coefficient: The λₘ of all experts that is usual; 1/M where None.
        holds_average: Whether equal λₘ give the plain average; 1/M, if their scale matters.
        writes_into_out: Whether ``merge`` fills the tensors given as ``out``, so that a caller
            can allocate them once for many merges.
        calibrates: Whether the merge is only the start of a calibration on examples.
        streams: Whether ``by_tensor`` merges a tensor without the others in memory.
        entrywise: Whether an entry of the merge depends on that entry of the inputs and on what
            is found of all tensors beforehand, and on nothing else.
        chooses: Whether it chooses among methods by scores, and is no formula itself.
    """

    statistic: Statistic | None = None
    needs_base: bool = False
    uses_coefficients: bool = True
    scale_invariant: bool = False
    usual_coefficient: float | None = None
    holds_average: bool = False
    writes_into_out: bool = False
    calibrates: bool = False
    streams: bool = False
    entrywise: bool = False
    chooses: bool = False

    def __repr__(self) -> str:
        return constructor_call(self)

    @property
    def allows_negative(self) -> bool:
        """Whether a λₘ may be negative. Weights of a mean may not: their sum divides it."""
        return not self.scale_invariant

    @property
    def numbers(self) -> Mapping[str, tuple[float, float, float]]:
        """What a search may try beside λ: by name this method's own value, the least, the greatest.

        The names begin with the class's: they are written to the log of trials as they are.
        """
        return {}

    def with_numbers(self, values: Mapping[str, float]) -> "MergeMethod":
        """Makes the method that has these ``numbers``, or gives this one where it has none.

        Args:
            values: Numbers by name, and others; the method's own where a name is left out.

        Returns:
            The method.
        """
        return self

    def check_count(self, count: int) -> None:  # noqa: B027  # most take any number
        """Checks that the formula takes that many experts.

        Args:
            count: M.

        Raises:
            UserError: If it does not.
        """

    def statistic_scale(self, statistic: Mapping[str, Any]) -> float:
        """Measures a statistic by the one number over all its tensors that the formula needs.

        Along a curve of Fishers it is interpolated as their entries are.

        Args:
            statistic: What ``statistic`` names, for one expert.

        Returns:
            The number; 1, without reading the statistic, where the formula needs none.
        """
        return 1.0

    def merge(
        self,
        base: Params | None,
        experts: Sequence[Params],
        coefficients: Sequence[float],
        statistics: Sequence[Mapping[str, Any]] | None = None,
        /,
        *,
        scales: Sequence[float] | None = None,
        places: Mapping[str, Place] | None = None,
        out: Params | None = None,
    ) -> Params:
        """Checks the inputs and computes the merged tensors.

        Args:
            base: θ₀, of the experts' layout; None where ``needs_base`` is False.
            experts: θₘ, M sets of tensors of one layout, the target task's expert first; of
                several dtypes, the merge has the one that holds the numbers of all.
            coefficients: λₘ, M numbers, usually in [0, 1]; from 0 unless ``allows_negative``.
            statistics: M of what ``statistic`` names, by tensor: Fₘ ≥ 0 of that layout, or a
                ``Gram`` where there is one; None where ``statistic`` is None.
            scales: ``statistic_scale`` of each statistic, where it is known already.
            places: The tensors' places, where the experts are part of a larger model; read from
                the experts' names when left out.
            out: Contiguous tensors of the experts' layout, dtypes and device to write to; used
                where ``writes_into_out`` is True.

        Returns:
            ``out`` where it was written to, else new tensors of the experts' layout and dtype.

        Raises:
            ValueError: If an input is missing, or does not fit the experts.
        """
        self.check_count(len(experts))
        if self.statistic is None:
            statistics = ()
        elif statistics is None:
            name = STATISTIC_NAMES[self.statistic]
            raise ValueError(f"{type(self).__name__} needs {name} for each expert")
        inputs = MergeInputs(base, experts, coefficients, statistics, given_places=places)
        check_inputs(self, inputs)
        inputs = replace(inputs, experts=of_one_dtype(experts))
        if scales is None:
            scales = [self.statistic_scale(one) for one in statistics]
        elif statistics and len(scales) != len(statistics):
            raise ValueError(
                f"{type(self).__name__}: scales: there are {len(scales)} for {len(statistics)} "
                "statistics; give one per statistic"
            )
        return self.compute(replace(inputs, scales=scales), out)

    def merge_buffers(
        self, base: Params | None, experts: Sequence[Params], coefficients: Sequence[float]
    ) -> Params:
        """Merges buffers that training moves, such as running statistics.

        Weights without a statistic of their own are averaged, b = Σₘ λₘbₘ / Σₘ λₘ; and where
        the λₘ scale task vectors, b = (max(0, 1 − Σₘ λₘ) b₀ + Σₘ λₘbₘ) / max(1, Σₘ λₘ). Both
        stay between the given values, as a variance or a range has to; a negative λₘ counts as 0.

        Args:
            base: b₀, of the experts' layout, if there is a base.
            experts: bₘ.
            coefficients: λₘ; not used where the method uses none.

        Returns:
            New tensors of the experts' layout and dtypes, computed in float64; entries that are
            the same in all inputs stay as they are.
        """
        models, shares = list(experts), [max(0.0, one) for one in coefficients]
        if not self.uses_coefficients or (base is None and not any(shares)):
            shares = [1.0] * len(experts)
        if base is not None and (not any(shares) or (self.needs_base and not self.scale_invariant)):
            models, shares = [base, *models], [max(0.0, 1 - sum(shares)), *shares]
        total = sum(shares)
        return {
            name: convex([one[name] for one in models], [share / total for share in shares])
            for name in experts[0]
        }

    def facts(self, inputs: MergeInputs) -> list[str]:
        """States in sentences, without a full stop, what the report should tell of a merge."""
        return []

    @abstractmethod
    def compute(self, inputs: MergeInputs, out: Params | None = None) -> Params:
        """Computes the formula on inputs that fit it.

        Args:
            inputs: The inputs, checked.
            out: See ``merge``.

        Returns:
            See ``merge``.
        """

    def by_tensor(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares a merge that is made a tensor at a time, of models that need not be in memory.

        Args:
            inputs: Inputs that fit the formula, with ``given_places`` and ``scales``. Their
                mappings may read a tensor whenever it is asked for.

        Returns:
            From a name to the merged tensor, in the experts' dtype: bit for bit what ``compute``
            makes of it; an error where ``streams`` is False.
        """
        raise NotImplementedError(f"{type(self).__name__} needs all tensors in memory")

    def pull_back(self, inputs: MergeInputs, gradient: Params) -> Tensor:
        """Computes ∂L/∂λₘ from ∂L/∂θ, for a loss L of the merged tensors.

        Args:
            inputs: The inputs of the merge, checked.
            gradient: ∂L/∂θ by tensor, for some of the tensors.

        Returns:
            One number for each expert (m,), in float64; an error where there is no such rule.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradient of its coefficients")


def constructor_call(made: object) -> str:
    """Writes how an object was made, for reports of methods that hold other objects.

    Args:
        made: An object that holds its constructor's arguments under their names.

    Returns:
        For instance ``Trim(density=0.2, per_tensor=False)``.
    """
    names = [name for name in inspect.signature(type(made)).parameters if hasattr(made, name)]
    arguments = ", ".join(f"{name}={getattr(made, name)!r}" for name in names)
    return f"{type(made).__name__}({arguments})"


def check_positive_sum(coefficients: Sequence[float]) -> None:
    """Checks that a method which divides by Σₘ λₘ can do so.

    Args:
        coefficients: λₘ.

    Raises:
        ValueError: If they do not sum to more than zero.
    """
    if not sum(coefficients) > 0:
        raise ValueError(f"the coefficients {list(coefficients)} must have a positive sum")
