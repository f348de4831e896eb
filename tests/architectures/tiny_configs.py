"""Small configurations of the architectures of transformers, made by rules on entries' names."""

from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from tests import tiny

LARGEST = 2_000_000
"""Weights of a model that is still tiny."""

KINDS = {
    "classifier": (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        AutoModelForSequenceClassification,
    ),
    "seq2seq": (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM),
    "causal": (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
}
"""Kind to the model types that have it, and the class that builds them."""

SIZES: dict[str, int] = {
    **dict.fromkeys(
        "hidden_size d_model n_embd dim embed_dim embedding_size d_embed word_embed_proj_dim "
        "hidden_dim emb_dim dim_model".split(),
        32,
    ),
    **dict.fromkeys(
        "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers "
        "num_decoder_layers num_encoder_layers".split(),
        2,
    ),
    **dict.fromkeys(
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
        "decoder_attention_heads num_experts n_routed_experts num_local_experts "
        "moe_num_experts".split(),
        4,
    ),
    **dict.fromkeys(
        "num_key_value_heads num_experts_per_tok num_experts_per_token moe_k top_k "
        "moe_topk".split(),
        2,
    ),
    **dict.fromkeys(
        "intermediate_size d_ff n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner dim_ff "
        "ffn_hidden_size".split(),
        48,
    ),
    **dict.fromkeys("max_position_embeddings n_positions max_seq_len".split(), 64),
    **dict.fromkeys(
        "moe_intermediate_size shared_expert_intermediate_size "
        "moe_shared_expert_intermediate_size q_lora_rank".split(),
        16,
    ),
    **dict.fromkeys(
        "head_dim d_kv kv_lora_rank qk_nope_head_dim v_head_dim attention_head_size".split(), 8
    ),
    **dict.fromkeys("n_group topk_group first_k_dense_replace".split(), 1),
    **dict.fromkeys("chunk_size mamba_chunk_size".split(), 8),
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
}

_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["codegen", "gptj"], {"rotary_dim": 4}),
    **dict.fromkeys(["hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"], {"head_dim": 8}),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"], _HYBRID),
    **dict.fromkeys(["esmc", "dots3_note_text"], {"num_key_value_heads": 4}),
    "fsmt": {"decoder_start_token_id": 2},  # what its shift of the answers starts with
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "nemotron": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "lilt": {"hidden_size": 24},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "is_decoder": True},
}
"""What the rules miss, by model type."""


class NotBuilt(Exception):
    """An architecture that has no tiny form by these rules; its message says why."""


@cache
def config_of(kind: str, model_type: str):
    """Makes a configuration of a few thousand weights.

    Raises:
        NotBuilt: If it cannot be made, or its model is large.
    """
    try:
        config = _config(kind, model_type)
        with torch.device("meta"):
            model = KINDS[kind][1].from_config(config)
        size = sum(one.numel() for one in model.parameters())
    except Exception as error:  # whatever a library's class says of a size that it does not take
        raise NotBuilt(one_line(error)) from error
    if size > LARGEST:
        raise NotBuilt(f"{size:,} weights by these rules")
    return config


def _config(kind: str, model_type: str):
    kind_of_config = CONFIG_MAPPING[model_type]
    known = kind_of_config().to_dict()
    entries = {name: size for name, size in SIZES.items() if known.get(name) is not None}
    if known.get("qk_rope_head_dim") is not None:
        entries |= {"head_dim": 4, "num_key_value_heads": 4}  # of the rotary part; no grouping
    entries |= tiny.TEXT | {"bos_token_id": 3}
    if kind == "seq2seq" or known.get("is_encoder_decoder"):
        entries["decoder_start_token_id"] = 0
    entries |= OWN.get(model_type, {})
    if kind == "classifier":
        entries["num_labels"] = 3
    return kind_of_config(**entries)


def build(kind: str, model_type: str, seed: int):
    """Builds a model with weights large enough that no gradient is negligible.

    Raises:
        NotBuilt: If it cannot be built.
    """
    config = config_of(kind, model_type)
    torch.manual_seed(seed)
    try:
        model = KINDS[kind][1].from_config(config).float().eval()
    except Exception as error:
        raise NotBuilt(one_line(error)) from error
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def one_line(error: BaseException) -> str:
    """An error's type and message in one line of at most 160 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def model_types(kind: str) -> list[str]:
    """The model types of a kind, by name."""
    return sorted(KINDS[kind][0])
