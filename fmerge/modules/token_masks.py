"""Which positions of what the layers of a network read are tokens, and which are padding.

Letters: n example, c choice, t token of a prompt, s token of an answer; rows r = n·c keep the
choices of an example together.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmerge.errors import UserError
from fmerge.modules.answers import ABSENT


def told_apart(batch: Mapping[str, Any], has_decoder: bool) -> dict[str, Any]:
    """Pads a batch's answers until prompts and answers differ in length.

    A mask can then be found by its shape.

    Args:
        batch: One task's batch.
        has_decoder: Whether the network reads prompts and answers apart.

    Returns:
        The batch; with one more position without a token for its answers where t = s.
    """
    batch = dict(batch)
    if has_decoder and "choice_ids" in batch:
        answers: Tensor = batch["choice_ids"]
        if answers.shape[2] == batch["input_ids"].shape[1]:
            batch["choice_ids"] = F.pad(answers, (0, 1), value=ABSENT)
    return batch


def token_masks(batch: Mapping[str, Any], has_decoder: bool) -> list[Tensor]:
    """Makes the masks of all that a network's layers read of a batch.

    Args:
        batch: One task's batch, of which ``told_apart`` has made sure.
        has_decoder: Whether the network reads prompts and answers apart.

    Returns:
        Masks by shape, True where there is a token of an example or of a choice that it has: of
        the text (n, t); or of prompts (n, t), of answers (r, s), and of the prompts as the
        answers attend to them (r, t); or of the prompts with their answers (r, k).

    Raises:
        UserError: If the batch has no ``attention_mask``.
    """
    if "attention_mask" not in batch:
        raise UserError(
            f"--data.tasks: the batches of '{batch.get('task')}' have no attention_mask, so that "
            "their padding is not known; RegMean needs a module whose collate gives one"
        )
    mask: Tensor = batch["attention_mask"].bool()
    if "choice_ids" not in batch:
        return [mask]
    answers: Tensor = batch["choice_ids"]
    c, s = answers.shape[1:]
    present = (answers != ABSENT).flatten(0, 1)
    there = present.any(1, keepdim=True)
    prompts = mask.repeat_interleave(c, 0) & there
    if has_decoder:
        return [mask, present, prompts]
    # an answer follows its prompt without a gap, and all rows are as long as the longest
    lengths = prompts.sum(1) + present.sum(1)
    places = torch.arange(int(lengths.max()), device=lengths.device)
    return [places < lengths[:, None]]
