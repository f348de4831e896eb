"""How long a prompt may be, and how many were longer."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


class CutPrompts:
    """Counts, task by task, the prompts that were cut.

    Attributes:
        cut: Task name to the number of prompts cut so far, in this process.
        seen: Task name to the number of prompts so far, in this process.
    """

    def __init__(self) -> None:
        self.cut: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def count(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        texts: Sequence[Sequence[str]],
        lengths: Sequence[int],
        limits: Sequence[int],
        task: str,
    ) -> None:
        """Adds n prompts to the counts, and logs one line the first time a task's are cut.

        Args:
            tokenizer: The tokenizer that cut them.
            texts: The arguments of the tokenizer for each prompt (n,): a text, perhaps a pair.
            lengths: Tokens of each prompt as it was cut (n,).
            limits: Tokens that each might have (n,).
            task: The task's name.
        """
        # only a prompt as long as allowed can have been cut: what it was before tells
        suspects = [i for i, limit in enumerate(limits) if lengths[i] >= limit]
        cut = [
            i for i in suspects if len(tokenizer(*texts[i], verbose=False)["input_ids"]) > limits[i]
        ]
        first = bool(cut) and not self.cut[task]
        self.cut[task] += len(cut)
        self.seen[task] += len(texts)
        if first:
            _log.warning(
                "task '%s': %d of the first %d prompts are longer than %d tokens and were cut; "
                "later ones are cut silently",
                task,
                self.cut[task],
                self.seen[task],
                limits[cut[0]],
            )


def longest_prompt(
    max_length: int, tokenizer: "PreTrainedTokenizerBase", models: Sequence[nn.Module]
) -> int:
    """Finds how many tokens an input may have.

    Args:
        max_length: As many as asked for.
        tokenizer: Knows how many its model takes.
        models: May have positions for so many.

    Returns:
        The smallest of these.
    """
    limits: list[int] = [max_length, tokenizer.model_max_length]
    return min([*limits, *filter(None, map(positions_of, models))])


def positions_of(model: nn.Module) -> int | None:
    """Counts the tokens a model has positions for; RoBERTa's begin behind that of the padding.

    Args:
        model: A Hugging Face model.

    Returns:
        The number; None where positions are relative.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, layer in model.named_modules():
        if positions and name.endswith("position_embeddings") and isinstance(layer, nn.Embedding):
            return positions - (-1 if layer.padding_idx is None else layer.padding_idx) - 1
    return positions
