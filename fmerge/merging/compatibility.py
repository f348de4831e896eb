"""Whether models can be merged: the same function of their weights, and one origin."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmerge.errors import UserError
from fmerge.merging.config_entries import function_entries
from fmerge.merging.distances import layer_distances
from fmerge.params import Params
from fmerge.report.distances import LayerDistances

FIELDS = (
    "model_type",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "feed_forward_proj",
    "num_attention_heads",
    "num_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "d_kv",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rms_norm_eps",
    "position_embedding_type",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "sliding_window",
    "vocab_size",
    "type_vocab_size",
    "is_decoder",
    "is_encoder_decoder",
    "tie_word_embeddings",
    "scale_embedding",
    "scale_attn_weights",
    "decoder_start_token_id",
)
"""Entries that tell more than a tensor that differs, and are compared before the layouts."""

FARTHEST = 1.2
"""Largest distance of an expert from its origin, relative to the origin's own norm.

A fine-tuned model is a few hundredths away, an unrelated one of the same recipe about √2: its
matrices have the same norm and are orthogonal. This bound is between the two; every unrelated
model with at least two thirds of the norm exceeds it.
"""


def check_same_function(
    reference: nn.Module,
    other: nn.Module,
    reference_name: str,
    name: str,
    fields: Collection[str] | None = None,
) -> None:
    """Refuses configs under which equal weights would compute different things.

    All entries are compared, nested ones included, but those of ``config_entries.HARMLESS``. One
    that a config lacks is the same as None or False.

    Args:
        reference: A model; without a ``config`` of transformers there is nothing to compare.
        other: A model of the same kind.
        reference_name: Where ``reference`` comes from, for the message.
        name: Where ``other`` comes from, for the message.
        fields: The only entries to compare, those inside them included; all when None.

    Raises:
        UserError: If an entry differs; the message names it and both values.
    """
    # a network of one's own may have a config of its own kind
    if not all(hasattr(getattr(one, "config", None), "to_dict") for one in (reference, other)):
        return
    expected, found = _config(reference), _config(other)
    names = list(dict.fromkeys([*expected, *found]))
    for field in sorted(names, key=lambda one: one.partition(".")[0] not in FIELDS):
        counts = fields is None or field.partition(".")[0] in fields
        if counts and _differ(expected, found, field):
            way_out = "" if field in FIELDS else ", or make the entry equal if it changes nothing"
            raise UserError(
                f"{name}: its config says {field} {found.get(field)}, but {reference_name} says "
                f"{expected.get(field)}, so that their weights mean different things; merge "
                f"models fine-tuned from one base{way_out}"
            )


def check_related(
    reference: Mapping[str, Tensor], other: Mapping[str, Tensor], reference_name: str, name: str
) -> None:
    """Refuses a model whose matrices are as far from another's as an unrelated model's would be.

    The distance is ‖θ − θ₀‖ / ‖θ₀‖ over all matrices together; vectors, such as the gains of
    normalization layers, are near one in any model.

    Args:
        reference: θ₀, the base or another expert.
        other: θ, of the same layout.
        reference_name: Where ``reference`` comes from, for the message.
        name: Where ``other`` comes from, for the message.

    Raises:
        UserError: If the distance is above ``FARTHEST``.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for key, origin in reference.items():
        if origin.ndim >= 2:
            one, two = origin.flatten(), other[key].flatten()
            products = (one - two).square().sum(), one.square().sum(), two.square().sum(), one @ two
            sums += torch.stack(products).double().cpu()
    refuse_unrelated(sums.tolist(), reference_name, name)


def refuse_unrelated(sums: Sequence[float], reference_name: str, name: str) -> None:
    """Refuses a model by four sums over the matrices of two.

    Args:
        sums: ‖θ₀ − θ‖², ‖θ₀‖², ‖θ‖² and ⟨θ₀, θ⟩.
        reference_name: Where θ₀ comes from, for the message.
        name: Where θ comes from, for the message.

    Raises:
        UserError: If the distance is above ``FARTHEST``.
    """
    difference, own, its, product = sums
    if difference > FARTHEST**2 * own:
        cosine = product / max((own * its) ** 0.5, 1e-300)
        distance = (difference / max(own, 1e-300)) ** 0.5
        raise UserError(
            f"{name}: lies {distance:.2f} times the norm of {reference_name} away from it (cosine "
            f"{cosine:.2f}), as far as an unrelated model; give the base "
            f"that it was fine-tuned from, and experts of that base alone"
        )


def task_vector_facts(base: Params, bodies: Mapping[str, Params]) -> str:
    """Describes the norms of the experts' task vectors τₘ = θₘ − θ₀ and the cosines between them.

    Args:
        base: θ₀.
        bodies: θₘ by expert, of its layout.

    Returns:
        One line: ‖τₘ‖ / ‖θ₀‖ of each, and the cosine of every two.
    """
    found = layer_distances(base, bodies)
    return "" if found is None else described(found)


def described(found: LayerDistances) -> str:
    """Words task vectors whose products are known by layer.

    Args:
        found: The products, of experts that have a base.

    Returns:
        See ``describe_vectors``.
    """
    whole = found.total()
    products = torch.tensor(whole.products[""], dtype=torch.float64)
    return describe_vectors(found.names, products, whole.norms[""])


def describe_vectors(names: Sequence[str], products: Tensor, norm: float) -> str:
    """Words the norms of task vectors and the cosines between them.

    Args:
        names: The experts.
        products: ⟨τₘ, τₙ⟩ (m, n), in float64.
        norm: ‖θ₀‖².

    Returns:
        One line: ‖τₘ‖ / ‖θ₀‖ of each, and the cosine of every two.
    """
    lengths = products.diagonal().sqrt()
    parts = [
        f"`{name}` {100 * float(length) / max(norm, 1e-300) ** 0.5:.1f}%"
        for name, length in zip(names, lengths, strict=True)
    ]
    cosines = [
        f"`{names[i]}` and `{names[j]}` "
        f"{float(products[i, j] / (lengths[i] * lengths[j]).clamp_min(1e-300)):.2f}"
        for i in range(len(names))
        for j in range(i)
    ]
    return f"{', '.join(parts)} of the base's norm; cosines: {', '.join(cosines)}"


def _config(model: nn.Module) -> dict[str, Any]:
    """What the config says of the function, and from which padding token positions are counted."""
    entries = function_entries(model.config.to_dict())  # type: ignore[operator, union-attr]
    modules = model.modules() if isinstance(model, nn.Module) else ()
    for module in modules:
        padding = getattr(module, "padding_idx", None)
        # of RobertaEmbeddings and kin; that of nn.Embedding changes no output
        kind = type(module).__name__.endswith(("Embeddings", "PositionalEmbedding"))
        if padding is not None and kind:
            entries["pad_token_id"] = padding
    return entries


def _differ(expected: Mapping[str, Any], found: Mapping[str, Any], field: str) -> bool:
    one, other = expected.get(field), found.get(field)
    if field not in expected or field not in found:  # read as getattr(config, field, False)
        return bool(one) or bool(other)
    return bool(one != other)
