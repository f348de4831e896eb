"""What a search looks through: one coefficient for each expert and each group of tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fmerge.search.parameter_groups import Groups, coefficient_name, coefficient_names, partition

WHOLE: Mapping[str, Sequence[str]] = {"": ()}
"""The one group of a model whose tensors share a coefficient; its name is empty."""


@dataclass(frozen=True)
class SearchSpace:
    """The box [0, 1]ⁿ of coefficients λ, n = experts × groups.

    Attributes:
        experts: The experts, in the order of the coefficients.
        groups: Group name to the names of its tensors; ``WHOLE`` where an expert has one
            coefficient. A search needs the names of the groups alone.
        scale_invariant: Whether c·λ is the same merge as λ.
    """

    experts: Sequence[str]
    groups: Mapping[str, Sequence[str]] = field(default_factory=lambda: WHOLE)
    scale_invariant: bool = False

    @classmethod
    def of(
        cls,
        experts: Sequence[str],
        tensors: Sequence[str],
        groups: Groups = "whole",
        scale_invariant: bool = False,
    ) -> "SearchSpace":
        """Divides a body's tensors into groups.

        Args:
            experts: The experts, in the order of the coefficients.
            tensors: The names of the body's tensors, in the order of the model.
            groups: How they are divided.
            scale_invariant: Whether c·λ is the same merge as λ.

        Returns:
            The space; every tensor is in exactly one group.
        """
        return cls(tuple(experts), partition(tensors, groups), scale_invariant)

    @property
    def names(self) -> tuple[str, ...]:
        """The coefficients' names: ``expert``, or ``expert/group``, expert by expert."""
        return tuple(coefficient_names(self.experts, list(self.groups)))

    def spread(self, by_expert: Mapping[str, float]) -> dict[str, float]:
        """Gives all groups of an expert the same coefficient.

        Args:
            by_expert: λ by expert.

        Returns:
            λ by the names of the coefficients.
        """
        return {
            coefficient_name(expert, group): by_expert[expert]
            for expert in self.experts
            for group in self.groups
        }
