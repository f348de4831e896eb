"""Which PEFT adapters are read: LoRA whose options leave W = W₀ + ΔW, and no other."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fmerge.errors import UserError, known

INSTEAD: Final = (
    "merge it into its base first, by peft's merge_and_unload() and save_pretrained(), and give "
    "that folder"
)
_PROMPTS: Final = r"PROMPT|PREFIX|P_TUNING|CPT|CARTRIDGE"
_INITS: Final = {True, False, None, "gaussian", "eva", "orthogonal"}
"""What leaves the base's weights as they are; PiSSA, OLoRA, CorDA and LoftQ change them."""

_REFUSED: Final = {
    "alora_invocation_tokens": "it acts on some tokens alone (aLoRA)",
    "layer_replication": "it repeats layers of its base (layer_replication)",
    "target_parameters": "it targets parameters that are no module's weight (target_parameters)",
    "trainable_token_indices": "it trains single tokens (trainable_token_indices)",
    "use_qalora": "it is of a quantized base (use_qalora)",
    "loftq_config": "it is of a quantized base (loftq_config)",
}
"""Options under which weights mean something else, and what they do."""

_HARMLESS: Final = frozenset((
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config"),
    *("ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"),
    *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config"),
    *("megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size"),
    *("r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type"),
    *("use_dora", "use_rslora"),
))
"""Options that are read here, or that change neither ΔW nor where it belongs."""


def check_lora(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses an adapter that base + ΔW does not describe.

    Args:
        folder: Its folder, for the message.
        config: The content of its ``adapter_config.json``.

    Raises:
        UserError: If it is of another kind than LoRA, or has an option that is not supported.
    """
    kind = str(config.get("peft_type"))[:40]
    if kind != "LORA":
        why = "adds no ΔW to weights" if re.search(_PROMPTS, kind) else INSTEAD
        raise UserError(
            f"{folder}: is an adapter of type {kind}, but fmerge reads LoRA alone; "
            + (f"{kind} {why}, so it cannot be merged" if why != INSTEAD else why)
        )
    for option, what in _REFUSED.items():
        if config.get(option):
            raise UserError(f"{folder}: {what}, which fmerge does not read; {INSTEAD}")
    init = config.get("init_lora_weights")
    if not isinstance(init, str | bool | None) or init not in _INITS:
        raise UserError(
            f"{folder}: its init_lora_weights is {str(init)[:40]!r}, which changes the base's own "
            f"weights; {INSTEAD}"
        )
    unknown = {name for name, value in config.items() if value and name not in _HARMLESS}
    if unknown:
        raise UserError(f"{folder}: has the option {known(unknown)}, unknown to fmerge; {INSTEAD}")
