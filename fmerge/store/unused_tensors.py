"""Tensors of a checkpoint that the class which runs it does not use: refused, but for a few."""

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from fmerge.errors import UserError
from fmerge.params import head_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HARMLESS: Final = {
    "numbers that follow from the config": r"(^|\.)(position_ids|token_type_ids|inv_freq|version"
    r"|_float_tensor|masked_bias|causal_mask)$",
    "heads of pre-training": r"^(cls\.(predictions|seq_relationship)|lm_head|lm_loss|pred_layer"
    r"|vocab_(transform|layer_norm|projector)|generator_(lm_head|predictions)"
    r"|discriminator_predictions|predictions|sop_classifier|(lm|mask)_predictions)\."
    r"|^(decoder\.(weight|bias)|final_logits_bias)$",
    "a pooler that the head does not read": r"^(\w+\.)?pooler\.",
    "what stands for the hidden parts of an image": r"(^|\.)embeddings\.mask_token$",
}
"""What may be left out of any model, by regular expressions of names."""

_TEXTS: Final = r"^(text_model|text_projection|visual_projection)\.|^logit_(scale|bias)$"
"""What a model of images and texts has for texts, which a classifier of images does without."""

_HINTS: Final = {
    r"adapter|lora_|prefix_tuning|prompt_encoder": "it is of an adapter: merge the adapter into "
    "the weights first, by its own library",
    r"scale|zero|qweight|absmax|SCB|quant|g_idx": "it is of a quantized model: give the model as "
    "it was before quantization",
}


def check_used(
    source: str,
    model: "PreTrainedModel",
    unused: Collection[str],
    shapes: Mapping[str, Collection[int]],
    any_head: bool,
) -> None:
    """Refuses tensors that the model does not run: without them it computes something else.

    Args:
        source: Where they are from, for the message.
        model: The model that was read.
        unused: The names of the tensors that it does not have.
        shapes: The shapes of the source's tensors by name, as far as they are known.
        any_head: Whether a head of any kind is left out.

    Raises:
        UserError: If there is one that is not ``HARMLESS``; the message names up to three.
    """
    named = [
        name
        for name in sorted(unused)
        if not any(re.search(pattern, name) for pattern in HARMLESS.values())
        and not (model.main_input_name == "pixel_values" and re.search(_TEXTS, name))
        and not _is_mask(name, shapes)
        and not (any_head and not _in_body(name, model))
    ]
    if not named:
        return
    one = len(named) == 1
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    hint = next(
        (words for part, words in _HINTS.items() if re.search(part, named[0])),
        "give the model as its own class saves it, or remove what nothing needs",
    )
    raise UserError(
        f"{source}: holds tensor{'' if one else 's'} {', '.join(map(repr, named[:3]))}{more}, "
        f"which {type(model).__name__} does not use; {hint}"
    )


def _is_mask(name: str, shapes: Mapping[str, Collection[int]]) -> bool:
    """The causal mask of GPT-2 and kin, which old files hold as the bias of the attention."""
    bias = re.search(r"\.(attn|attention)\.bias$", name)
    return bool(bias) and len(shapes.get(name, ())) != 1


def _in_body(name: str, model: "PreTrainedModel") -> bool:
    """A file of the body alone names its tensors without the body's prefix."""
    body = model.base_model
    if body is model:  # a model without a head, or with one beside the body's own parts
        return name.partition(".")[0] not in head_parts(model)
    inside = {child for child, _ in [*body.named_children(), *body.named_parameters()]}
    return name.startswith(f"{model.base_model_prefix}.") or name.partition(".")[0] in inside
