"""Adapters among the experts of a merge: they must be of one base, which is then the merge's."""

import os
from collections.abc import Mapping

from fmerge.errors import UserError
from fmerge.merging.expert_fishers import Expert
from fmerge.store import is_adapter, read_adapter


def base_of(experts: Mapping[str, Expert], base: str | None) -> str | None:
    """Finds the base of a merge.

    Args:
        experts: Task name to expert.
        base: What ``--base`` gives, if it does.

    Returns:
        That, or else the one base that all adapters name; None where no expert is an adapter.

    Raises:
        UserError: If adapters name different bases.
    """
    if base is not None:
        return base
    found: tuple[str, str] | None = None
    for expert in experts.values():
        if not is_adapter(expert.path):
            continue
        named = read_adapter(expert.path).base
        if found is not None and os.path.realpath(found[1]) != os.path.realpath(named):
            raise UserError(
                f"{expert.path}: is an adapter of the base {named}, but {found[0]} is one of "
                f"{found[1]}; if both are the same model, give it by --base, else merge adapters "
                "of one base only"
            )
        found = found or (expert.path, named)
    return None if found is None else found[1]
