"""The tokenizers of a merge: one vocabulary, and each task's own where they differ otherwise.

What is said of tokenizers holds for whatever makes a module's inputs, such as image processors.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from fmerge.errors import UserError
from fmerge.modules import TaskModule
from fmerge.store import Preprocessors

_LOG = logging.getLogger(__name__)


def tokenizers_of(
    module: TaskModule,
    sources: Mapping[str, str],
    models: Mapping[str, nn.Module],
    base: str | None,
) -> dict[str, Any]:
    """Reads the experts' tokenizers, and checks that their models can be merged.

    Args:
        module: Knows what kind its tokenizers are of.
        sources: Expert to where it was read from, donors last.
        models: Task to network; donors have none here.
        base: Where the base was read from, if there is one.

    Returns:
        Task to its tokenizer: its expert's; where that was saved without one, the first of the
        other experts' or the base's. Tokenizers that do the same are one object.

    Raises:
        UserError: If there is none, one cannot be read, has another vocabulary, gives ids that
            its model has no embedding for, or lacks a padding token that is needed.
    """
    kind = module.reads
    found = {name: kind.find(source) for name, source in sources.items()}
    lender = next((name for name, one in found.items() if one is not None), None)
    first_source = next(iter(sources.values())) if lender is None else sources[lender]
    first = None if lender is None else found[lender]
    if first is None:
        first = None if base is None else kind.find(base)
    if first is None:
        first = kind.load(first_source)  # which says that there is none
    lacking = [sources[name] for name in models if found[name] is None]
    _tell_lent(kind, lacking, base if lender is None else first_source)
    chosen: dict[str, Any] = {}
    for name, source in sources.items():
        own = first if found[name] is None else found[name]
        if differing := kind.conflict(first, own):
            # one that does not fit its own model is the cause, and that error says what to mend
            for other, before in chosen.items():
                module.check_preprocessor(models[other], before, sources[other])
            raise UserError(
                f"{source}: its {kind.word} differs from that of {first_source} in {differing}; "
                f"merge models of one {kind.word} only"
            )
        if name in models:
            chosen[name] = _same(kind, own, chosen)
    for name, own in chosen.items():
        module.check_preprocessor(models[name], own, sources[name])
    _tell(kind, chosen)
    return chosen


def _same(kind: Preprocessors, own: Any, chosen: Mapping[str, Any]) -> Any:
    """One of those that were chosen before, if it does the same."""
    return next((one for one in chosen.values() if not kind.differences(one, own)), own)


def _tell_lent(kind: Preprocessors, sources: Sequence[str], lender: str | None) -> None:
    if sources:
        rank_zero_only(_LOG.warning)(
            "%s: no %s; that of %s is used", ", ".join(sources), kind.word, lender
        )


def _tell(kind: Preprocessors, chosen: Mapping[str, Any]) -> None:
    (name, first), *others = chosen.items()
    for other, own in others:
        if differing := kind.differences(first, own):
            rank_zero_only(_LOG.warning)(
                "task '%s': its %s has another %s than that of '%s'; each task keeps its "
                "own, in scoring and in what is saved",
                other, kind.word, ", ".join(differing), name,
            )  # fmt: skip
