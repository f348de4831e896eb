"""The tokenizers of a merge: one vocabulary, and each task's own where they differ otherwise."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from fmerge.errors import UserError
from fmerge.modules import TaskModule, TokenizedModule
from fmerge.store import (
    check_tokenizer,
    find_tokenizer,
    give_padding,
    load_tokenizer,
    tokenizer_differences,
    vocabulary_difference,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)


def tokenizers_of(
    module: TaskModule,
    sources: Mapping[str, str],
    models: Mapping[str, nn.Module],
    base: str | None,
) -> dict[str, "PreTrainedTokenizerBase"]:
    """Reads the experts' tokenizers, and checks that they have one vocabulary.

    Args:
        module: Tells whether a network cannot do without a padding token.
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
    found = {name: find_tokenizer(source) for name, source in sources.items()}
    lender = next((name for name, one in found.items() if one is not None), None)
    first_source = next(iter(sources.values())) if lender is None else sources[lender]
    first = None if lender is None else found[lender]
    if first is None:
        first = None if base is None else find_tokenizer(base)
    if first is None:
        first = load_tokenizer(first_source)  # which says that there is none
    lacking = [sources[name] for name in models if found[name] is None]
    _tell_lent(lacking, base if lender is None else first_source)
    chosen: dict[str, PreTrainedTokenizerBase] = {}
    for name, source in sources.items():
        given = found[name]
        own = first if given is None else given
        if tokens := vocabulary_difference(first, own):
            raise UserError(
                f"{source}: its tokenizer differs from that of {first_source} in "
                f"{len(tokens)} tokens, such as '{tokens[0]}'; merge models of one tokenizer only"
            )
        if name in models:
            chosen[name] = _same(own, chosen)
            check_tokenizer(models[name], chosen[name], source)
    for name, own in chosen.items():
        needed = isinstance(module, TokenizedModule) and module.needs_padding(models[name])
        give_padding(models[name], own, sources[name], needed)
    _tell(chosen)
    return chosen


def _same(
    own: "PreTrainedTokenizerBase", chosen: Mapping[str, "PreTrainedTokenizerBase"]
) -> "PreTrainedTokenizerBase":
    """One of those that were chosen before, if it does the same."""
    return next((one for one in chosen.values() if not tokenizer_differences(one, own)), own)


def _tell_lent(sources: Sequence[str], lender: str | None) -> None:
    if sources:
        rank_zero_only(_LOG.warning)(
            "%s: no tokenizer; that of %s is used", ", ".join(sources), lender
        )


def _tell(chosen: Mapping[str, "PreTrainedTokenizerBase"]) -> None:
    (name, first), *others = chosen.items()
    for other, own in others:
        if differing := tokenizer_differences(first, own):
            rank_zero_only(_LOG.warning)(
                "task '%s': its tokenizer has another %s than that of '%s'; each task keeps its "
                "own, in scoring and in what is saved",
                other, ", ".join(differing), name,
            )  # fmt: skip
