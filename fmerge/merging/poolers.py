"""Poolers that not all models of a merge have: each task then keeps its own, as its head."""

import logging
from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from fmerge.errors import UserError
from fmerge.merging.merged_heads import merged_part
from fmerge.modules import SharedBody, TaskModule
from fmerge.params import Params
from fmerge.store import new_pooler

_LOG = logging.getLogger(__name__)


def keep_poolers_apart(
    module: TaskModule,
    read: Mapping[str, nn.Module],
    base: nn.Module | None,
    sources: Mapping[str, str],
    heads: bool = False,
) -> dict[str, Params]:
    """Takes the pooler out of the body where the base or a donor was saved without one.

    Models of masked words, entities or spans have none, and the experts' then have no origin in
    common.

    Args:
        module: The module, whose ``apart`` is set; others than a ``SharedBody`` have no pooler.
        read: Expert to network.
        base: The base, if there is one.
        sources: Expert to where it was read from.
        heads: Whether heads are merged too, of which no task can then keep its own.

    Returns:
        Expert to its whole body, with the pooler; to all its parameters, where heads are merged.

    Raises:
        UserError: If heads are merged, and a model has no pooler.
    """
    if isinstance(module, SharedBody):
        module.apart = frozenset()
    whole = {name: merged_part(module, model, heads) for name, model in read.items()}
    if not isinstance(module, SharedBody):
        return whole
    models = {sources[name]: model for name, model in read.items()}
    if base is not None:
        models["the base"] = base
    lacking = {source: new for source, one in models.items() if (new := new_pooler(one))}
    if lacking and heads:
        raise UserError(
            f"--heads: is merge, but {', '.join(lacking)}: no pooler, which belongs to the head; "
            "leave --heads out to keep each expert's own"
        )
    module.apart = frozenset().union(*lacking.values())
    if lacking:
        rank_zero_only(_LOG.warning)(
            "%s: no pooler ('%s'), so that each task keeps its own, as its head",
            ", ".join(lacking), min(module.apart),
        )  # fmt: skip
    return whole
