"""What experts of one merge must have in common with their base, or with the first of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from fmerge.merging.buffers import (
    check_no_nan,
    moving_buffers,
    persistent_buffers,
    shared_buffers,
)
from fmerge.merging.compatibility import FIELDS, check_related, check_same_function
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.merged_heads import check_heads, merged_part
from fmerge.modules import TaskModule
from fmerge.params import Params, check_finite, check_same_layout, params_of


@dataclass(frozen=True)
class Relative:
    """What experts must have in common with: the base, or the first expert where there is none.

    Attributes:
        model: Its network.
        body: What is merged of it.
        name: Where it comes from, for messages.
        shared: The names of its body's parameters, without those of a head that is merged.
    """

    model: nn.Module
    body: Params
    name: str
    shared: Collection[str]

    @property
    def buffers(self) -> Params:
        """Its body's persistent buffers."""
        return shared_buffers(self.model, self.body)

    def _moving(self, experts: Mapping[str, Expert], buffers: Mapping[str, Params]) -> list[str]:
        """Names the buffers to be merged; none where headers stand for numbers."""
        found = {experts[name].path: own for name, own in buffers.items()}
        return moving_buffers({**found, self.name: self.buffers})

    def _check(self, expert: Expert, model: nn.Module, body: Params, values: bool) -> None:
        """Checks config, layout and, where they are read, values of an expert."""
        check_same_function(self.model, model, self.name, expert.path, FIELDS)
        if whole := len(self.shared) < len(self.body):
            check_heads(self.model, model, self.shared, self.name, expert.path)
        buffers = shared_buffers(model, body)
        check_same_layout(self.body | self.buffers, body | buffers, self.name, expert.path)
        check_same_function(self.model, model, self.name, expert.path)
        apart = expert.donor and not whole
        check_no_nan(buffers if apart else persistent_buffers(model), expert.path)
        if values:
            check_finite(body if apart else params_of(model), expert.path)
            related = {name: one for name, one in self.body.items() if name in self.shared}
            check_related(related, body, self.name, expert.path)

    def check_all(
        self,
        experts: Mapping[str, Expert],
        read: Mapping[str, nn.Module],
        bodies: Mapping[str, Params],
        values: bool,
    ) -> tuple[dict[str, Params], list[str]]:
        """Checks configs, layouts and, where they are read, values of experts.

        Args:
            experts: The experts by name.
            read: Their networks.
            bodies: What is merged of them.
            values: Whether numbers are read.

        Returns:
            Each body's persistent buffers, and the names of those that are merged.
        """
        for name, expert in experts.items():
            self._check(expert, read[name], bodies[name], values)
        buffers = {name: shared_buffers(model, bodies[name]) for name, model in read.items()}
        return buffers, self._moving(experts, buffers)


def base_origin(
    module: TaskModule, ancestor: nn.Module, source: str, values: bool, whole: bool
) -> Relative:
    """Describes the base, once its numbers are checked.

    Args:
        module: Knows what its tasks share.
        ancestor: The base's network.
        source: Where it was read from.
        values: Whether numbers are read.
        whole: Whether heads are merged too.

    Returns:
        What experts are compared with.
    """
    part = merged_part(module, ancestor, whole)
    made = Relative(ancestor, part, f"the base {source}", set(module.body(ancestor)))
    check_no_nan(made.buffers, source)
    if values:
        check_finite(made.body, source)
    return made
