"""The weights at which no expert's Fisher or Gram outweighs another's: where a search starts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer

from fmerge.merging.assembler import Assembler
from fmerge.merging.assemblers import Assemblers
from fmerge.merging.stored import only
from fmerge.methods import Gram
from fmerge.search import SearchSpace
from fmerge.search.parameter_groups import coefficient_name
from fmerge.store import RunFolder

_NOTE = "balanced weights"


def with_balance(
    space: SearchSpace, assembler: Assemblers, trainer: Trainer, folder: RunFolder
) -> SearchSpace:
    """Adds the balanced weights to a space; a resumed run has the very same.

    Args:
        space: The space.
        assembler: Has the experts' statistics.
        trainer: Broadcasts between processes.
        folder: The run's folder; the first process notes them there.

    Returns:
        The space; unchanged where the method uses no statistics, or more than ratios matter.
    """
    if not isinstance(assembler, Assembler):  # methods share their coefficients
        return space
    if assembler.statistics is None or not space.has_ratios:
        return space
    found: Mapping[str, float] = {}
    if trainer.is_global_zero:
        found = folder.noted(_NOTE) or balanced_weights(space, assembler)
        folder.note(_NOTE, dict(found))
    return replace(space, balanced=trainer.strategy.broadcast(found))


def balanced_weights(space: SearchSpace, assembler: Assembler) -> dict[str, float]:
    """Computes λₘ ∝ 1/F̄ₘ, or ‖Fₘ‖/F̄ₘ where a method divides λₘ by ‖Fₘ‖.

    Args:
        space: The space.
        assembler: Has the experts' statistics.

    Returns:
        λ by name, the largest of a group 1, where F̄ₘ is the mean entry of the group's Fisher, or
        of the diagonals of its Grams; equal in a group that has none.
    """
    found: dict[str, float] = {}
    for group, names in assembler.parts.items():
        weights = {expert: _weight(assembler, expert, group) for expert in space.experts}
        known = all(weights.values())
        top = max(weights.values())
        for expert, weight in weights.items():
            found[coefficient_name(expert, group)] = weight / top if known and names else 1.0
    return {name: found[name] for name in space.names}


def _weight(assembler: Assembler, expert: str, group: str) -> float:
    """What an expert's λ is multiplied by to balance it; 0 where nothing is known of it."""
    statistics: Mapping[str, Any] = (assembler.statistics or {})[expert]
    total, entries = 0.0, 0
    for name in assembler.parts[group]:
        if (one := statistics.get(name)) is not None:
            values = one.matrix.diagonal() if isinstance(one, Gram) else one
            total, entries = total + float(values.double().sum()), entries + values.numel()
    part = only(statistics, assembler.parts[group])
    return assembler.method.statistic_scale(part) * entries / total if total > 0 else 0.0
