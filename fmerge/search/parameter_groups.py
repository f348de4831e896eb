"""Groups of tensors that have coefficients of their own: pure functions of the tensors' names."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from fmerge.errors import UserError
from fmerge.params import layer_of

Groups = Literal["whole", "kind"] | int | dict[str, str]
"""``whole``: one coefficient per expert; ``kind``: one for its embeddings, attention, MLP and
other tensors each; a number: that many slices of its depth; or group name to regular expression."""

_KINDS = {
    "embeddings": r"embed|\bshared\b|\bwte\b|\bwpe\b",
    # by name, norms are inside attention and MLP blocks, but they belong to neither
    "other": r"norm|\bln_|\.ln\d?\b",
    "attention": r"att(entio)?n",
    "mlp": r"mlp|ffn|feed_?forward|DenseReluDense|intermediate|output\.dense|\bfc[12]\b|\bff\b"
    r"|\blin[12]\b",
}


def partition(names: Sequence[str], groups: Groups) -> dict[str, list[str]]:
    """Puts every tensor into exactly one group.

    Args:
        names: The tensors' names, in the order of the model.
        groups: How they are divided.

    Returns:
        Group name to the names of its tensors, both in order; the one group of ``whole`` has an
        empty name.

    Raises:
        UserError: If the groups do not fit the names.
    """
    if groups == "whole":
        return {"": list(names)}
    if groups == "kind":
        return _by_kind(names)
    if isinstance(groups, int):
        return _by_depth(names, groups)
    assert isinstance(groups, Mapping)
    return _by_expression(names, groups)


def coefficient_names(experts: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Names the coefficients.

    Args:
        experts: The experts.
        groups: The groups; one with an empty name where the model is not divided.

    Returns:
        ``expert/group``, or ``expert`` where the group's name is empty, expert by expert.
    """
    return [coefficient_name(expert, group) for expert in experts for group in groups]


def coefficient_name(expert: str, group: str) -> str:
    """Names one coefficient.

    Args:
        expert: The expert.
        group: The group; empty where the model is not divided.

    Returns:
        ``expert/group``, or ``expert``.
    """
    return f"{expert}/{group}" if group else expert


def _by_kind(names: Sequence[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {kind: [] for kind in ("embeddings", "attention", "mlp", "other")}
    for name in names:
        found = (kind for kind, text in _KINDS.items() if re.search(text, name, re.IGNORECASE))
        parts[next(found, "other")].append(name)
    if len(parts["other"]) == len(names):
        raise UserError(
            f"groups: 'kind' knows none of the tensors, such as '{names[0]}'; give regular "
            "expressions instead: {name of the group: expression}"
        )
    return {kind: part for kind, part in parts.items() if part}


def _by_depth(names: Sequence[str], count: int) -> dict[str, list[str]]:
    """Slices of equally many layers, up to one; what has no number goes with the layer before."""
    prefixes = [layer_of(name) for name in names]
    layers = list(dict.fromkeys(prefix for prefix in prefixes if prefix))
    if not 1 <= count <= len(layers):
        raise UserError(
            f"groups: is {count}, but the model has {len(layers)} numbered layers to slice; give "
            f"a number from 1 to {len(layers)}, or regular expressions"
        )
    parts: dict[str, list[str]] = {f"block{i}": [] for i in range(count)}
    place = {layer: i * count // len(layers) for i, layer in enumerate(layers)}
    current = 0
    for name, prefix in zip(names, prefixes, strict=True):
        current = place.get(prefix, current)
        parts[f"block{current}"].append(name)
    return parts


def _by_expression(names: Sequence[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    patterns = {}
    for group, text in groups.items():
        if not group or "/" in group:
            raise UserError(f"groups: '{group}' is no name for a group: not empty, without a '/'")
        try:
            patterns[group] = re.compile(text)
        except re.error as error:
            raise UserError(f"groups: the expression of '{group}', {text}: {error}") from error
    parts: dict[str, list[str]] = {group: [] for group in patterns}
    unmatched = []
    for name in names:
        found = [group for group, pattern in patterns.items() if pattern.search(name)]
        if len(found) > 1:
            raise UserError(f"groups: tensor '{name}' matches {', '.join(found)}; let one match it")
        if found:
            parts[found[0]].append(name)
        else:
            unmatched.append(name)
    if unmatched:
        more = f" and {len(unmatched) - 1} more match" if len(unmatched) > 1 else " matches"
        raise UserError(
            f"groups: tensor '{unmatched[0]}'{more} no expression; every tensor needs one"
        )
    for group, part in parts.items():
        if not part:
            raise UserError(
                f"groups: the expression of '{group}', {groups[group]}, matches nothing"
            )
    return parts
