"""Checks of prompts with choices, and the special tokens that a language model needs for them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmerge.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def decoder_start(config: Any) -> int:
    """Finds the token that a decoder starts with.

    Args:
        config: The config of an encoder-decoder.

    Returns:
        ``decoder_start_token_id``; where there is none, the begin of a sequence, as in generation.

    Raises:
        UserError: If there is neither.
    """
    for name in ("decoder_start_token_id", "bos_token_id"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    raise UserError(
        f"{config.name_or_path}: its config.json has neither decoder_start_token_id nor "
        "bos_token_id, one of which its decoder starts with; add the one it was trained with"
    )


def padding_id(model: Any, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Finds the token to pad prompts with.

    Args:
        model: The network, which may look for its own padding token.
        tokenizer: The tokenizer.

    Returns:
        The config's, or else the tokenizer's; where there is none, any: padding is masked.
    """
    own: int | None = getattr(model.config, "pad_token_id", None)
    return own if own is not None else tokenizer.pad_token_id or 0


def named(example: Mapping[str, Any], task: str) -> str:
    """Names an example in a message.

    Args:
        example: The example.
        task: Its task's name.

    Returns:
        The task, and the begin of the example's text.
    """
    text = example.get("text", example.get("messages"))
    return f"task '{task}': the example {str(text)[:40]!r}"


def check_example(example: Mapping[str, Any], task: str) -> None:
    """Checks that an example has choices, and a label among them.

    Args:
        example: The example.
        task: Its task's name.

    Raises:
        UserError: If it has not.
    """
    if "choices" not in example:
        other = "SpanAnswers" if isinstance(example.get("label"), tuple) else "TextClassifier"
        other = "TextGenerator" if {"answer", "messages"} & set(example) else other
        raise UserError(
            f"{named(example, task)} has no choices, which RankChoice ranks; give --model {other}, "
            "or data of prompts with choices, such as Prompted"
        )
    choices, label = example["choices"], example["label"]
    if isinstance(choices, str) or len(choices) < 2:
        raise UserError(
            f"{named(example, task)} has the choices {choices!r}, but a list of at least 2 is "
            "needed"
        )
    if not 0 <= label < len(choices):
        raise UserError(
            f"{named(example, task)} has label {label}, but its {len(choices)} choices have the "
            f"numbers 0 to {len(choices) - 1}"
        )
