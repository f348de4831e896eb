"""Writes a merged model as a LoRA adapter of its base, which peft opens."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fmerge.store.adapter_weights import BASE_HASH
from fmerge.store.adapters import CONFIG, FILES, LABELS, PREFIX

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TASKS: Final = {
    "SEQ_CLS": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "QUESTION_ANS": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "TOKEN_CLS": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "SEQ_2_SEQ_LM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "CAUSAL_LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
}


@dataclass(frozen=True)
class SavedAdapter:
    """What makes a merged body of a base.

    Attributes:
        base: Where the base is.
        base_hash: ``hash_of`` the base's weights that have factors.
        factors: Name of each changed weight to B (o, r) and A (r, i), in float32; ΔW = B A.
        whole: The names of the body's other tensors that are changed.
        body: The names of all of the body's tensors; others are a head's, which is saved.
    """

    base: str
    base_hash: str
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(repr=False)
    whole: Sequence[str] = ()
    body: Sequence[str] = ()


def save_adapter(folder: Path, model: "PreTrainedModel", adapter: SavedAdapter) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors``.

    Args:
        folder: A folder, which is made if it is not there.
        model: The merged model, with W = W₀ + B A and its head.
        adapter: What is saved of its body.
    """
    modules = dict(model.named_modules())
    targets = {name.rpartition(".")[0]: factors for name, factors in adapter.factors.items()}
    saved = _saved_modules(model, adapter)
    biases = [name for name in adapter.whole if name.rpartition(".")[0] not in saved]
    tensors: dict[str, Tensor] = {}
    for path, factors in targets.items():
        tensors |= {f"{path}.{key}": one for key, one in _factors(modules[path], *factors)}
    for path in saved:
        own = modules[path].state_dict()
        tensors |= {f"{path}.{key}": one for key, one in own.items()}
    for name in biases:
        path = name.rpartition(".")[0]
        tensors[f"{path}.base_layer.bias" if path in targets else name] = model.get_parameter(name)
    config = _config(model, adapter, saved) | {"bias": "all" if biases else "none"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # clones, as safetensors refuses tensors that share memory
    save_file(
        {
            f"{PREFIX}{name}": one.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, one in tensors.items()
        },
        folder / FILES[0],
        {"format": "pt", BASE_HASH: adapter.base_hash} | _labels(model),
    )


def _saved_modules(model: "PreTrainedModel", adapter: SavedAdapter) -> list[str]:
    """The modules that are saved as a whole: of the head, and of tensors that have no factors."""
    prefix, body = f"{model.base_model_prefix}.", set(adapter.body)
    heads = [name for name, _ in model.named_parameters() if name not in body]
    # peft itself saves a classifier's head by its outermost module
    found = [
        name.rpartition(".")[0] if name.startswith(prefix) else name.partition(".")[0]
        for name in heads
    ]
    # a bias alone is saved by itself: its module may have factors
    found += [name.rpartition(".")[0] for name in adapter.whole if not name.endswith(".bias")]
    return list(dict.fromkeys(found))


def _factors(module: nn.Module, b: Tensor, a: Tensor) -> list[tuple[str, Tensor]]:
    """A module's factors, under the names and in the shapes that peft gives them."""
    if isinstance(module, nn.Embedding):
        return [("lora_embedding_A", a), ("lora_embedding_B", b)]
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kernel = module.weight.shape[1:]
        a, b = a.reshape(-1, *kernel), b.reshape(*b.shape, *[1] * (len(kernel) - 1))
    return [("lora_A.weight", a), ("lora_B.weight", b)]


def _config(
    model: "PreTrainedModel", adapter: SavedAdapter, saved: Sequence[str]
) -> dict[str, Any]:
    from transformers.pytorch_utils import Conv1D

    ranks = {name.removesuffix(".weight"): a.shape[0] for name, (_, a) in adapter.factors.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # peft takes the first pattern that a module's name ends with: the longest come first
    other = {path: ranks[path] for path in sorted(ranks, key=len, reverse=True)}
    other = {path: own for path, own in other.items() if own != rank}
    modules = [model.get_submodule(path) for path in ranks]
    return {
        "peft_type": "LORA",
        "task_type": _task_type(type(model).__name__),
        "base_model_name_or_path": adapter.base,
        "r": rank,
        "lora_alpha": rank,  # s = α/r is 1
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "modules_to_save": list(saved) or None,
        "fan_in_fan_out": all(isinstance(one, Conv1D) for one in modules),
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _task_type(architecture: str) -> str | None:
    from transformers.models.auto import modeling_auto

    for task, table in _TASKS.items():
        if architecture in getattr(modeling_auto, table).values():
            return task
    return None


def _labels(model: "PreTrainedModel") -> dict[str, str]:
    """The names of a classifier's outputs, for which peft's own config has no place."""
    if "Classification" not in type(model).__name__:
        return {}
    names = sorted((model.config.id2label or {}).items())
    return {LABELS: json.dumps([str(name) for _, name in names])}
