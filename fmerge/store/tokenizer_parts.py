"""Tokenizers compared as a whole, and written as they were read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SETTINGS = (
    "special_tokens_map", "padding_side", "truncation_side", "model_max_length", "chat_template",
    "clean_up_tokenization_spaces", "split_special_tokens", "model_input_names",
)  # fmt: skip
"""What transformers adds to the tokenizer's own steps."""

_PLACES = {"name_or_path", "vocab_file", "tokenizer_file", "is_local", "local_files_only"}
"""Arguments of a tokenizer that say where it is from, not what it does."""

_DEFAULTS: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, Any]]" = WeakKeyDictionary()
"""Tokenizer to the truncation and padding of its file, which calls of it overwrite."""


def note_defaults(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Notes the truncation and padding that a tokenizer's file sets, before calls overwrite them.

    Args:
        tokenizer: A tokenizer that was just read.
    """
    backend = _backend(tokenizer)
    if backend is not None:
        _DEFAULTS[tokenizer] = backend.truncation, backend.padding


def vocabulary_difference(
    one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase"
) -> list[str]:
    """Finds the tokens that two tokenizers give different ids.

    Args:
        one: A tokenizer.
        other: Another.

    Returns:
        The tokens, sorted; none where the vocabularies are the same.
    """
    first, second = one.get_vocab(), other.get_vocab()
    if first == second:
        return []
    return sorted({token for token, _ in set(first.items()) ^ set(second.items())})


def tokenizer_differences(
    one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase"
) -> list[str]:
    """Compares two tokenizers as a whole: every step from a text to ids, and the settings.

    Args:
        one: A tokenizer.
        other: Another.

    Returns:
        The names of what differs, such as ``normalizer`` or ``padding_side``; none where they are
        the same.
    """
    first, second = _parts(one), _parts(other)
    names = dict.fromkeys([*first, *second])
    return [name for name in names if first.get(name) != second.get(name)]


def _parts(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    parts: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    backend = _backend(tokenizer)
    if backend is None:
        # written in Python: its class and arguments are all that is known of its steps
        options = getattr(tokenizer, "init_kwargs", {})
        parts["class"] = type(tokenizer).__name__
        parts |= {key: str(one) for key, one in options.items() if key not in _PLACES}
    else:
        steps = json.loads(backend.to_str())
        # set anew by every call
        parts |= {key: one for key, one in steps.items() if key not in {"truncation", "padding"}}
    return parts | {name: getattr(tokenizer, name, None) for name in _SETTINGS}


def _backend(tokenizer: Any) -> Any:
    """The fast tokenizer's own object; None for one that is written in Python."""
    return getattr(tokenizer, "backend_tokenizer", None)


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes a tokenizer without the truncation and padding of its last call.

    Args:
        tokenizer: The tokenizer, which is left as it is.
        folder: Where.
    """
    backend = _backend(tokenizer)
    if backend is None:
        tokenizer.save_pretrained(folder)
        return
    last = backend.truncation, backend.padding
    _set(backend, *_DEFAULTS.get(tokenizer, (None, None)))
    try:
        tokenizer.save_pretrained(folder)
    finally:
        _set(backend, *last)


def _set(
    backend: Any, truncation: Mapping[str, Any] | None, padding: Mapping[str, Any] | None
) -> None:
    backend.no_truncation()
    backend.no_padding()
    if truncation is not None:
        backend.enable_truncation(**truncation)
    if padding is not None:
        backend.enable_padding(**padding)
