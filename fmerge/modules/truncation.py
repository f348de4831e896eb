"""How many tokens an input may have, and how many inputs were truncated to that."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)

_POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings")
"""Names of a config's number of positions; LED's encoder has one of its own."""


class TruncationCounter:
    """Counts the truncated inputs of each task.

    Attributes:
        truncated: Task name to the number of inputs truncated so far, in this process.
        seen: Task name to the number of inputs so far, in this process.
    """

    def __init__(self) -> None:
        self.truncated: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def count(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        texts: Sequence[Sequence[str]],
        lengths: Sequence[int],
        limits: Sequence[int],
        task: str,
    ) -> None:
        """Adds n inputs to the counts, and logs one line when the first of a task is truncated.

        Args:
            tokenizer: The tokenizer that truncated them.
            texts: The tokenizer's arguments for each input (n,): a text, or a pair of texts.
            lengths: Tokens of each input after truncation (n,).
            limits: Tokens that each may have (n,).
            task: The task's name.
        """
        # only an input of full length can have been truncated; to tokenize it once more, without
        # a limit, shows whether it was
        full = [i for i, limit in enumerate(limits) if lengths[i] >= limit]
        truncated = [
            i for i in full if len(tokenizer(*texts[i], verbose=False)["input_ids"]) > limits[i]
        ]
        limit = limits[truncated[0]] if truncated else 0
        self.add(task, len(truncated), len(texts), limit)

    def add(self, task: str, truncated: int, seen: int, limit: int, what: str = "prompts") -> None:
        """Adds inputs to the counts, and logs one line when the first of a task is truncated.

        Args:
            task: The task's name.
            truncated: How many were truncated.
            seen: How many there were.
            limit: Tokens that the first truncated one may have.
            what: What was truncated, for the message.
        """
        first = bool(truncated) and not self.truncated[task]
        self.truncated[task] += truncated
        self.seen[task] += seen
        if first:
            _LOG.warning(
                "task '%s': %d of the first %d %s are longer than %d tokens and were cut; "
                "later ones are cut silently",
                task,
                self.truncated[task],
                self.seen[task],
                what,
                limit,
            )


def max_input_length(
    max_length: int, tokenizer: "PreTrainedTokenizerBase", models: Sequence[nn.Module]
) -> int:
    """Finds how many tokens an input may have.

    Args:
        max_length: The user's limit.
        tokenizer: The tokenizer, whose limit is that of its model.
        models: The networks, which may have a limited number of positions.

    Returns:
        The smallest of these limits.
    """
    # a tokenizer's file may say -1 or 0 for none, as a config may
    limits = [one for one in (max_length, tokenizer.model_max_length) if one > 0]
    return int(min([*limits, *filter(None, map(position_count, models))]))


def position_count(model: nn.Module) -> int | None:
    """Counts the tokens for which a model has positions.

    Args:
        model: A Hugging Face model.

    Returns:
        The number; None where the config names none, as where positions are relative.
    """
    config: Any = model.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    found = (getattr(config, name, None) for name in _POSITIONS)
    # XLNet's config says -1
    positions = next((one for one in found if isinstance(one, int) and one > 0), None)
    if positions is None:
        return None
    for name, layer in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(layer, "padding_idx"):
            # RoBERTa's positions begin after that of the padding token
            return positions - (-1 if layer.padding_idx is None else layer.padding_idx) - 1
    return positions
