"""What a search looks through: one coefficient for each expert and each group of tensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fmerge.errors import UserError, known
from fmerge.search.parameter_groups import Groups, coefficient_name, coefficient_names, partition

Bounds = list[float] | dict[str, list[float]]
"""The least and the greatest coefficient: of every expert, or by expert."""

_Value = TypeVar("_Value")

Range = tuple[float, float]
UNIT: Range = (0.0, 1.0)
"""The bounds of a coefficient for which none are given."""

Numbers = Mapping[str, tuple[float, float, float]]
"""Numbers of a method that are searched too: by name its own value, the least, the greatest."""

WHOLE: Mapping[str, Sequence[str]] = {"": ()}
"""The one group of a model whose tensors share a coefficient; its name is empty."""


@dataclass(frozen=True)
class SearchSpace:
    """A box of coefficients λ, one for each expert and each group.

    Attributes:
        experts: The experts, in the order of the coefficients.
        groups: Group name to the names of its tensors; ``WHOLE`` where an expert has one
            coefficient. A search needs the names of the groups alone.
        scale_invariant: Whether c·λ is the same merge as λ.
        bounds: The least and the greatest λ by expert; 0 and 1 of those that are not among them.
        numbers: Numbers of the method that are searched like coefficients; they have no groups.
        balanced: λ by name, at which no expert's statistics outweigh another's by their scale;
            empty where the experts have none.
    """

    experts: Sequence[str]
    groups: Mapping[str, Sequence[str]] = field(default_factory=lambda: WHOLE)
    scale_invariant: bool = False
    bounds: Mapping[str, Range] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=dict)
    balanced: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        experts: Sequence[str],
        tensors: Sequence[str],
        groups: Groups = "whole",
        scale_invariant: bool = False,
        bounds: Bounds | None = None,
        numbers: Numbers | None = None,
    ) -> "SearchSpace":
        """Divides a body's tensors into groups.

        Args:
            experts: The experts, in the order of the coefficients.
            tensors: The names of the body's tensors, in the order of the model.
            groups: How they are divided.
            scale_invariant: Whether c·λ is the same merge as λ.
            bounds: The bounds of λ; 0 and 1 when left out.
            numbers: Numbers of the method that are searched too.

        Returns:
            The space; every tensor is in exactly one group.
        """
        ranges = check_bounds(bounds, experts)
        # numbers have no ratios: what is searched is then a box, whatever c·λ is
        ratios, numbers = scale_invariant and not numbers, numbers or {}
        return cls(
            tuple(experts), partition(tensors, groups), ratios, bounds=ranges, numbers=numbers
        )

    @property
    def coefficients(self) -> tuple[str, ...]:
        """The coefficients' names: ``expert``, or ``expert/group``, expert by expert."""
        return tuple(coefficient_names(self.experts, list(self.groups)))

    @property
    def names(self) -> tuple[str, ...]:
        """All names of a point: the coefficients', and those of the method's numbers."""
        return (*self.coefficients, *self.numbers)

    @property
    def own(self) -> dict[str, float]:
        """The method's own numbers, by name."""
        return {name: value for name, (value, _, _) in self.numbers.items()}

    @property
    def has_ratios(self) -> bool:
        """Whether the ratios of coefficients are all that matters, and nothing bounds these."""
        return self.scale_invariant and len(self.experts) > 1 and not self.bounds

    @property
    def box(self) -> dict[str, Range]:
        """The bounds of each coefficient and number, by its name."""
        found = self.spread({expert: self.bounds.get(expert, UNIT) for expert in self.experts})
        return found | {name: (low, high) for name, (_, low, high) in self.numbers.items()}

    def spread(self, by_expert: Mapping[str, _Value]) -> dict[str, _Value]:
        """Gives all groups of an expert the same value.

        Args:
            by_expert: λ, or its bounds, by expert.

        Returns:
            The same by the names of the coefficients.
        """
        return {
            coefficient_name(expert, group): by_expert[expert]
            for expert in self.experts
            for group in self.groups
        }


def check_bounds(bounds: Bounds | None, experts: Sequence[str]) -> dict[str, Range]:
    """Checks the bounds of coefficients.

    Args:
        bounds: Two numbers for all experts, or two by expert; None for [0, 1].
        experts: The experts.

    Returns:
        The least and the greatest λ of the experts that have bounds.

    Raises:
        UserError: If an expert is unknown, or bounds are not two finite numbers in order.
    """
    given = {} if bounds is None else bounds
    if not isinstance(given, Mapping):
        given = dict.fromkeys(experts, given)
    found = {}
    for expert, pair in given.items():
        if expert not in experts:
            raise UserError(
                f"--optimizer.bounds: unknown expert '{expert}'; known: {known(experts)}"
            )
        numbers = [x for x in pair if is_number(x)] if isinstance(pair, list | tuple) else []
        if len(numbers) != 2 or len(pair) != 2 or not numbers[0] < numbers[1]:
            raise UserError(
                f"--optimizer.bounds: are {pair} for '{expert}', but must be two numbers, the "
                "smaller one first, such as [0, 1.5]"
            )
        found[expert] = float(numbers[0]), float(numbers[1])
    return found


def is_number(value: object) -> bool:
    """Tells whether a value is a finite number.

    Args:
        value: Anything.

    Returns:
        False of a bool, which Python counts among the numbers.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
