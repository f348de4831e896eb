"""The entries of a model's config that may differ between models that are merged."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

HARMLESS: Final = {
    "where the model is from": r"_?name_or_path|_commit_hash|transformers_version|architectures"
    r"|model_name|model_type_version|unsloth_\w+|(torch_)?dtype|tokenizer_class|processor_class",
    "what the outputs are called": r"id2label|label2id|_?num_labels|problem_type|finetuning_task"
    r"|task_specific_params",
    "what only training uses": r"\w*dropout\w*|\w*_pdrop|\w*layerdrop|\w*drop_path\w*"
    r"|initializer_\w+|init_(std|xavier_std|range|method)|\w*_loss_coef|\w*aux_loss\w*|label_smoothing"
    r"|gradient_checkpointing",
    "how the same numbers are computed": r"use_cache|cache_implementation|_?attn_implementation\w*"
    r"|chunk_size_feed_forward|pretraining_tp|use_bfloat16|torchscript|return_dict"
    r"|output_(attentions|hidden_states|past|router_logits|scores)|reference_compile",
    "what the head alone uses": r"summary_\w+|classifier_pooling|classifier_bias",
    "what the tokenizer and `generate` use": r"(bos|eos|pad|forced_bos|forced_eos)_token_id"
    r"|(max|min)_length|max_new_tokens|num_beams|num_beam_groups|num_return_sequences|do_sample"
    r"|early_stopping|temperature|top_[kp]|typical_p|repetition_penalty|length_penalty"
    r"|diversity_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids"
    r"|suppress_tokens|begin_suppress_tokens|exponential_decay_length_penalty|prefix"
    r"|remove_invalid_values|return_dict_in_generate",
}
"""Regular expressions of whole names, by what they have in common."""

_POSITIONS: Final = "max_position_embeddings"
_PATTERN: Final = re.compile("|".join(HARMLESS.values()))


def function_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the entries of a config that change what equal weights compute.

    Args:
        config: A config as a dictionary, with dictionaries inside.

    Returns:
        Names, of nested entries with dots between, to plain values. ``max_position_embeddings``
        is among them only where rotary positions are scaled by it: elsewhere it is a size, which
        the weights show, or a bound.
    """
    scaled = any(
        path.endswith("rope_type") and value not in {"default", "linear", None}
        for path, value in _flat(config)
    )
    return {
        path: value
        for path, value in _flat(config)
        if not any(_PATTERN.fullmatch(part) for part in path.split("."))
        and (scaled or path.rpartition(".")[2] != _POSITIONS)
    }


def _flat(entries: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        else:
            yield path, _plain(value)


def _plain(value: Any) -> Any:
    """Makes values of equal meaning equal: a file holds lists where Python has tuples."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
