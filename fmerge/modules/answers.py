"""Answer choices: their tokens, and their log-likelihoods under a language model.

Letters: n example, c choice, t token of a prompt, s token of an answer, v vocabulary; rows r = n·c
are example-major.
"""

import inspect
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fmerge.modules.choices import decoder_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ABSENT = -100
"""The token where an answer has none, and the answer of a part that an example does not have."""


def target_tokens(
    tokenizer: "PreTrainedTokenizerBase", choices: Sequence[Sequence[str]]
) -> list[list[list[int]]]:
    """Tokenizes answers as the targets of a text-to-text model, end of sequence included.

    Args:
        tokenizer: The model's.
        choices: The answers of each example.

    Returns:
        Token ids by example, choice and position.
    """
    flat = tokenizer(text_target=list(chain(*choices)))["input_ids"]
    return _grouped([_ended(ids, tokenizer) for ids in flat], choices)


def continuation_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    literal: bool = False,
) -> list[list[list[int]]]:
    """Tokenizes answers as continuations of prompts, with an end of sequence if there is one.

    In many tokenizers a word's tokens depend on the space before it. An answer's tokens are
    therefore those that it adds to its prompt when both are tokenized as one text, with a space
    between them unless there is whitespace already.

    Args:
        tokenizer: The model's.
        prompts: The prompts without trailing spaces (n,), see ``bare``.
        choices: The answers of each example.
        literal: Whether the answers are all that follows their prompts, as a chat template writes
            it: no space before them and no end after them is added.

    Returns:
        Token ids by example, choice and position.
    """

    def tokenized(texts: list[str]) -> list[list[int]]:
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    of_prompts = tokenized(list(prompts))
    heads, texts, answers = [], [], []
    for prompt, ids, own in zip(prompts, of_prompts, choices, strict=True):
        for choice in own:
            spaced = literal or not prompt or prompt[-1].isspace() or choice[:1].isspace()
            heads.append(ids)
            answers.append(choice if spaced else f" {choice}")
            texts.append(prompt + answers[-1])
    flat = []
    for head, whole, answer in zip(heads, tokenized(texts), answers, strict=True):
        # a tokenizer that merges across the seam leaves the answer no tokens of its own
        own_ids = whole[len(head) :] if whole[: len(head)] == head else []
        own_ids = own_ids or tokenized([answer])[0]
        flat.append(own_ids if literal else _ended(own_ids, tokenizer))
    return _grouped(flat, choices)


def ends_texts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Tells whether a tokenizer ends every text, as a prompt must not be that an answer follows.

    Args:
        tokenizer: The model's.

    Returns:
        Whether the last token of a text is the end of a sequence.
    """
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[-1:] == [tokenizer.eos_token_id]


def bare(prompt: str) -> str:
    """Removes trailing spaces of a prompt: they belong to the tokens of the word after them.

    Args:
        prompt: The prompt of a causal model.

    Returns:
        The prompt, with its trailing line breaks.
    """
    return prompt.rstrip(" ")


def padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    """Pads rows on the right.

    Args:
        rows: Token ids, at most ``width`` a row.
        width: Length of the padded rows.
        fill: The token id to pad with.

    Returns:
        Token ids (rows, width).
    """
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def padded_choices(tokens: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Pads answers to the longest one, and examples to the most choices, with −100.

    Args:
        tokens: Token ids by example, choice and position.

    Returns:
        Token ids (n, c, s).
    """
    most = max(len(own) for own in tokens)
    width = max(len(ids) for own in tokens for ids in own)
    return torch.stack([padded([*own, *[[]] * (most - len(own))], width, ABSENT) for own in tokens])


def answer_log_likelihoods(
    model: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Computes the log-likelihoods of given answers.

    .. math::
        L_{nc} = \sum_s \log p(y_{ncs} | y_{nc,<s}, x_n)

    Args:
        model: A text-to-text or causal language model.
        input_ids: The prompts (n, t), padded on the right.
        attention_mask: 1 where there is a token (n, t).
        answers: Their tokens (n, c, s), −100 where there is none.

    Returns:
        L (n, c), at least float32, and the numbers of tokens they are sums over (n, c).
    """
    logits, targets = _logits(model, input_ids, attention_mask, answers)
    # unlike a gather from log_softmax, it saves only one tensor (r, s, v) for the backward pass
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=ABSENT, reduction="none"
    )
    sums = -losses.view(targets.shape).sum(1).view(answers.shape[:2])
    return sums, (answers != ABSENT).sum(2)


def token_distributions(
    model: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor, answers: Tensor
) -> Tensor:
    """Computes log p(· | y₍<ₛ₎, x), what the model says of each token of given answers.

    Args:
        model: A text-to-text or causal language model.
        input_ids: The prompts (n, t), padded on the right.
        attention_mask: 1 where there is a token (n, t).
        answers: The answers' tokens (n, s), −100 where there is none.

    Returns:
        log p (n, s, v), at least float32, −∞ where there is no token.
    """
    logits, targets = _logits(model, input_ids, attention_mask, answers[:, None])
    # the first logit that predicts one of the answer's tokens, which follow each other
    first = (targets != ABSENT).int().argmax(1, keepdim=True)
    places = first + torch.arange(answers.shape[1], device=answers.device)
    places = places.clamp_max(logits.shape[1] - 1)
    own = logits.take_along_dim(places[..., None], 1).log_softmax(2)
    return own.masked_fill((answers == ABSENT)[..., None], -torch.inf)


def mean_log_likelihoods(sums: Tensor, lengths: Tensor) -> Tensor:
    """Computes ℓ[n,c] = L[n,c] / T[n,c].

    Args:
        sums: L (n, c).
        lengths: T (n, c), 0 where an example has no such choice.

    Returns:
        ℓ (n, c), −∞ where an example has no such choice.
    """
    return (sums / lengths.clamp_min(1)).masked_fill(lengths == 0, -torch.inf)


def _logits(
    model: "PreTrainedModel", input_ids: Tensor, attention_mask: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs answers (n, c, s) after their prompts: logits (r, k, v) and their targets (r, k)."""
    score = _decode if model.config.is_encoder_decoder else _continue
    logits, targets = score(model, input_ids, attention_mask, answers)
    # half precision has too few bits for a sum over the vocabulary
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), targets


def _decode(
    model: Any, input_ids: Tensor, attention_mask: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Encodes each prompt, decodes each answer: logits (r, s, v) and targets (r, s)."""
    outputs = model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
    # absent choices are run too: every example must have c rows of the batch
    c = answers.shape[1]
    targets = answers.flatten(0, 1)
    # the encoder's own kind of output: some models read more of it, such as router logits
    outputs["last_hidden_state"] = outputs.last_hidden_state.repeat_interleave(c, 0)
    logits = model(
        # the encoder does not run again, but FSMT masks later tokens only where it is given them
        input_ids=input_ids.repeat_interleave(c, 0),
        encoder_outputs=outputs,
        attention_mask=attention_mask.repeat_interleave(c, 0),
        decoder_input_ids=_shifted(model, targets),
        use_cache=False,
    ).logits
    return logits, targets


def _shifted(model: Any, targets: Tensor) -> Tensor:
    """The decoder's inputs: a start token, then each target's predecessor."""
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:  # some architectures start with a token of the language
        try:
            ids: Tensor = own(labels=targets.clone())  # FSMT writes to its argument
            return ids
        except (AttributeError, TypeError, ValueError):
            # all that it can lack is the token to start with, which is looked for below
            if isinstance(getattr(model.config, "decoder_start_token_id", None), int):
                raise
    start, fill = decoder_start(model.config), model.config.pad_token_id or 0
    return F.pad(targets.where(targets != ABSENT, fill)[:, :-1], (1, 0), value=start)


def _continue(
    model: Any, input_ids: Tensor, attention_mask: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs each answer after its prompt: logits (r, k, v) and targets (r, k)."""
    # padding on the right leaves every token the position that it has when its text is alone,
    # in whichever way a model counts positions
    _, c, s = answers.shape
    lengths = attention_mask.sum(1)
    places = lengths[:, None] + torch.arange(s, device=answers.device)
    places = places.repeat_interleave(c, 0)
    present = answers != ABSENT
    # not the longest prompt plus the longest answer, which may exceed the model's positions
    width = int((lengths[:, None] + present.sum(2)).max())
    answers, present = answers.flatten(0, 1), present.flatten(0, 1)

    def insert(prompts: Tensor, values: Tensor) -> Tensor:
        rows = F.pad(prompts, (0, s)).repeat_interleave(c, 0)
        return rows.scatter(1, places, values)[:, :width]

    # most logits come before those of the first answer, and are not needed
    needed = width - int(lengths.min()) + 1
    chosen = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits = model(
        input_ids=insert(input_ids, answers.where(present, 0)),
        attention_mask=insert(attention_mask, present.to(attention_mask.dtype)),
        use_cache=False,
        **({"logits_to_keep": needed} if chosen else {}),
    ).logits[:, -needed:]
    # a logit predicts the next token; shifting the targets avoids a copy of the logits
    targets = answers.new_full((len(answers), input_ids.shape[1] + s + 1), ABSENT)
    targets = targets.scatter(1, places, answers)[:, : width + 1]
    return logits, targets[:, -needed:]


def _ended(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    end: Any = tokenizer.eos_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def _grouped(flat: Sequence[list[int]], choices: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    items = iter(flat)
    return [[next(items) for _ in own] for own in choices]
