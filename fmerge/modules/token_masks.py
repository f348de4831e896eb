"""Masks of the positions that hold tokens, for all inputs that a network's layers read.

Letters: n example, c choice, t token of a prompt, s token of an answer; rows r = n·c are
example-major.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmerge.errors import UserError
from fmerge.modules.answers import ABSENT


def has_decoder(network: nn.Module) -> bool:
    """Tells whether a network reads prompts and answers in separate layers.

    Args:
        network: A task's network.

    Returns:
        True for encoder-decoders of transformers.
    """
    from transformers import PreTrainedModel

    return isinstance(network, PreTrainedModel) and bool(network.config.is_encoder_decoder)


def with_distinct_lengths(batch: Mapping[str, Any], has_decoder: bool) -> dict[str, Any]:
    """Makes prompts and answers of an encoder-decoder differ in length.

    A layer's mask is found by the shape of its input, which must not be that of both.

    Args:
        batch: One task's batch.
        has_decoder: Whether the network reads prompts and answers in separate layers.

    Returns:
        The batch; where t = s, with one position of padding more in its answers.
    """
    batch = dict(batch)
    if has_decoder and "choice_ids" in batch:
        answers: Tensor = batch["choice_ids"]
        if answers.shape[2] == batch["input_ids"].shape[1]:
            batch["choice_ids"] = F.pad(answers, (0, 1), value=ABSENT)
    return batch


def token_masks(batch: Mapping[str, Any], has_decoder: bool) -> list[Tensor]:
    """Makes the masks of all inputs of a network's layers.

    Args:
        batch: One task's batch, as ``with_distinct_lengths`` returns it.
        has_decoder: Whether the network reads prompts and answers in separate layers.

    Returns:
        Masks of different shapes, True at the tokens of an example or of one of its choices.
        Without choices: the text (n, t). An encoder-decoder: prompts (n, t), answers (r, s), and
        prompts as the answers attend to them (r, t). A decoder: prompts with answers (r, k).

    Raises:
        UserError: If the batch has no ``attention_mask``.
    """
    if "attention_mask" not in batch:
        raise UserError(
            f"--data.tasks: the batches of '{batch.get('task')}' have no attention_mask, so that "
            "their padding is not known; give a module whose collate returns one"
        )
    mask: Tensor = batch["attention_mask"].bool()
    if "choice_ids" not in batch:  # both texts of a pair may be rows of their own (n, 2, t)
        return [mask.flatten(0, -2)]
    answers: Tensor = batch["choice_ids"]
    c, s = answers.shape[1:]
    present = (answers != ABSENT).flatten(0, 1)
    # examples with fewer choices have rows without any token: their prompts do not count
    exists = present.any(1, keepdim=True)
    prompts = mask.repeat_interleave(c, 0) & exists
    if has_decoder:
        return [mask, present, prompts]
    # an answer follows its prompt without a gap, and all rows are as long as the longest
    lengths = prompts.sum(1) + present.sum(1)
    places = torch.arange(int(lengths.max()), device=lengths.device)
    return [places < lengths[:, None]]


def masks_of_batch(batch: Mapping[str, Any], has_decoder: bool) -> list[Tensor] | None:
    """Makes the masks of a batch of texts.

    Args:
        batch: One task's batch, as ``with_distinct_lengths`` returns it.
        has_decoder: Whether the network reads prompts and answers in separate layers.

    Returns:
        What ``token_masks`` returns; None where the batch has no text, but images, so that every
        position counts.
    """
    text = "input_ids" in batch or "attention_mask" in batch
    return token_masks(batch, has_decoder) if text else None


def mask_of(x: Tensor, masks: Sequence[Tensor]) -> Tensor | None:
    """Finds the mask of a layer's input.

    Args:
        x: The input (r, t, i), or of one position a row, (r, i).
        masks: What ``token_masks`` returned.

    Returns:
        True at the rows that count, of the shape of ``x`` without its last dimension; None where
        the input has the shape of no mask.
    """
    for mask in masks:
        if x.ndim == 3 and x.shape[:2] == mask.shape:
            return mask
        if x.ndim == 2 and len(x) == len(mask):
            return mask.any(1)
    return None


def rows_of(layer: nn.Module, x: Tensor, masks: Sequence[Tensor] | None, n: int) -> Tensor | None:
    """Selects what a layer reads at the positions that count, as new tensors.

    Args:
        layer: The layer.
        x: Its input: (r, …, i), images (n, c, h, w) of a convolution, or (n, c, …) of a batch norm.
        masks: What ``token_masks`` returned; None where the batch has no text, so that every
            position of its n examples counts.
        n: How many examples the batch has.

    Returns:
        Rows (p, i), of a convolution its patches; None where the input's shape does not tell which
        positions count.
    """
    if isinstance(layer, nn.Conv2d):
        if masks is not None or x.ndim != 4 or len(x) != n or isinstance(layer.padding, str):
            return None
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        known = masks is None and x.ndim > 1 and len(x) == n
        return x.movedim(1, -1).flatten(0, -2).clone() if known else None
    if masks is None:
        return x.flatten(0, -2).clone() if x.ndim > 1 and len(x) == n else None
    mask = mask_of(x, masks)
    return None if mask is None else x[mask]  # padding may hold anything, a NaN too
