"""Texts that a language model writes: the likeliest token at each step, or drawn ones.

Letters: r row, t token of a prompt, s token of an answer, v vocabulary.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.modules.answers import ABSENT
from fmerge.modules.choices import decoder_start, padding_id
from fmerge.modules.truncation import position_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def left_padded(rows: Tensor, mask: Tensor) -> Tensor:
    """Moves the padding of rows from their right to their left.

    Args:
        rows: Token ids, or the mask itself (r, t).
        mask: 1 where there is a token (r, t), on the left.

    Returns:
        The rows (r, t), whose tokens end together.
    """
    width = rows.shape[1]
    padding = width - mask.sum(1, keepdim=True)
    return rows.gather(1, (torch.arange(width, device=rows.device) - padding) % width)


def likeliest(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: Tensor,
    attention_mask: Tensor,
    most: int,
) -> Tensor:
    """Writes an answer to each prompt, the likeliest token at each step.

    The model's own generation settings hold (forced tokens, penalties), but those of drawing and
    of beams.

    Args:
        model: A text-to-text or causal language model, in eval mode.
        tokenizer: Its tokenizer.
        input_ids: The prompts (r, t), padded on the right.
        attention_mask: 1 where there is a token (r, t).
        most: Tokens that an answer may have.

    Returns:
        Token ids (r, s), the end included, −100 after it.
    """
    settings: Any = copy.deepcopy(model.generation_config)
    settings.update(
        do_sample=False, num_beams=1, temperature=None, top_k=None, top_p=None, min_p=None,
        early_stopping=None, length_penalty=None, max_length=None, min_length=None,
    )  # fmt: skip
    return _generated(model, tokenizer, settings, input_ids, attention_mask, most=most)


def drawn(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: Tensor,
    attention_mask: Tensor,
    uniforms: Tensor,
) -> Tensor:
    """Draws an answer to each prompt from the model itself, token by token.

    Args:
        model: A text-to-text or causal language model, in eval mode.
        tokenizer: Its tokenizer.
        input_ids: The prompts (r, t), padded on the right.
        attention_mask: 1 where there is a token (r, t).
        uniforms: Random numbers in [0, 1) (r, s), one for each token; an answer has at most s
            tokens.

    Returns:
        Token ids (r, s), the end included, −100 after it.
    """
    from transformers import GenerationConfig

    given: Any = model.generation_config
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id, do_sample=False
    )
    return _generated(
        model,
        tokenizer,
        settings,
        input_ids,
        attention_mask,
        most=uniforms.shape[1],
        # transformers picks the likeliest token, which is made the drawn one
        logits_processor=[_Draws(uniforms)],
    )


class _Draws:
    """Leaves of each row's scores the drawn token's alone.

    The cumulative distribution is inverted, so that equal numbers give equal tokens in any batch.
    """

    def __init__(self, uniforms: Tensor) -> None:
        self.uniforms = uniforms
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # on the CPU: not every device has float64
        cumulative = scores.double().cpu().softmax(1).cumsum(1)
        # the sums end at one but for rounding: scaled, no draw lies behind the last token
        scaled = self.uniforms[:, self.step, None].cpu() * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, scaled, right=True)
        tokens = tokens.clamp_max(scores.shape[1] - 1).to(scores.device)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def _generated(
    model: Any,
    tokenizer: Any,
    settings: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    most: int,
    **options: Any,
) -> Tensor:
    ends = _ends(settings.eos_token_id, tokenizer.eos_token_id)
    settings.update(
        max_new_tokens=most, pad_token_id=padding_id(model, tokenizer), eos_token_id=ends or None
    )
    if model.config.is_encoder_decoder:
        settings.update(decoder_start_token_id=decoder_start(model.config))
        begin = 1
    else:
        begin = input_ids.shape[1]
        input_ids = left_padded(input_ids, attention_mask)
        attention_mask = left_padded(attention_mask, attention_mask)
    positions = position_count(model)
    if positions is not None and begin + most > positions:
        raise UserError(
            f"--model.max_new_tokens: is {most}, but up to {begin} tokens stand before, and the "
            f"model takes {positions} in all; lower it, or shorten the prompts"
        )
    written: Tensor = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=settings, **options
    )[:, begin:]
    stops = torch.isin(written, torch.tensor(ends, device=written.device))
    after = stops.cumsum(1) - stops.long() > 0
    return written.masked_fill(after, ABSENT)


def _ends(*given: Any) -> list[int]:
    """The tokens that end a text: of the generation settings, and of the tokenizer."""
    found: list[int] = []
    for one in given:
        found += one if isinstance(one, list) else [] if one is None else [one]
    return list(dict.fromkeys(found))
