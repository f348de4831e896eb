"""Role and depth of every tensor, on the parameter names of real architectures."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BartModel,
    DistilBertConfig,
    RobertaConfig,
    T5Model,
    ViTConfig,
)

from fmerge.methods.roles import Place, places_of, role_of
from tests import tiny

SMALL = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
CONFIGS = {
    "bert": tiny.bert_config,
    "roberta": lambda: RobertaConfig(**SMALL, vocab_size=20, max_position_embeddings=24),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=20, dim=12, n_layers=2, n_heads=2, hidden_dim=16, max_position_embeddings=24
    ),
    "gpt2": tiny.gpt2_config,
    "llama": tiny.llama_config,
    "vit": lambda: ViTConfig(**SMALL, image_size=8, patch_size=4),
}


def body(family):
    if family == "t5":
        return T5Model(tiny.t5_config())
    if family == "bart":
        return BartModel(tiny.bart_config())
    return AutoModel.from_config(CONFIGS[family]())


# by kind of module, which the names were not read from
KINDS = {"LayerNorm": "norm", "RMSNorm": "norm", "T5LayerNorm": "norm", "LlamaRMSNorm": "norm"}


def role_by_module(module, own):
    kind = type(module).__name__
    if kind in KINDS:
        return KINDS[kind]
    if isinstance(module, nn.Embedding):
        return "embedding"
    if own == "bias":
        return "bias"
    if isinstance(module, nn.Linear) or kind == "Conv1D":
        return "linear"
    return "other"


@pytest.mark.parametrize("family", [*CONFIGS, "t5", "bart"])
def test_roles_are_those_of_the_modules(family):
    model = body(family)
    params = dict(model.named_parameters())
    places = places_of(params)
    assert list(places) == list(params)
    wanted = {}
    for name in params:
        module, _, own = name.rpartition(".")
        wanted[name] = role_by_module(model.get_submodule(module), own)
    if family == "vit":  # parameters of their own, beside a convolution
        assert wanted["embeddings.cls_token"] == wanted["embeddings.position_embeddings"] == "other"
        wanted |= {"embeddings.cls_token": "embedding"}
        wanted |= {"embeddings.position_embeddings": "embedding"}
    assert {name: place.role for name, place in places.items()} == wanted
    assert {"linear", "embedding", "norm"} <= set(wanted.values())


@pytest.mark.parametrize("family", [*CONFIGS, "t5", "bart"])
def test_orientations_are_those_of_the_modules(family):
    model = body(family)
    turned = {
        name
        for name, place in places_of(dict(model.named_parameters())).items()
        if place.inputs_first
    }
    modules = {
        f"{name}.weight" for name, one in model.named_modules() if type(one).__name__ == "Conv1D"
    }
    assert turned == modules and bool(turned) == (family == "gpt2")


def test_an_orientation_that_no_bias_tells_is_that_of_the_stack():
    shapes = {
        **{"h.0.up.weight": (2, 3), "h.0.up.bias": (3,), "h.0.square.weight": (2, 2)},
        **{"e.0.up.weight": (3, 2), "e.0.up.bias": (3,), "e.0.square.weight": (2, 2)},
        **{"out.weight": (2, 3), "x.0.mixed.weight": (2, 3), "x.0.mixed.bias": (3,)},
        **{"x.1.mixed.weight": (3, 2), "x.1.mixed.bias": (3,), "x.0.square.weight": (2, 2)},
    }
    places = places_of({name: torch.zeros(shape) for name, shape in shapes.items()})
    turned = [name for name, place in places.items() if place.inputs_first]
    assert turned == ["h.0.up.weight", "h.0.square.weight", "x.0.mixed.weight"]


def depths(family):
    found = {}
    for name, place in places_of(dict(body(family).named_parameters())).items():
        found.setdefault((place.depth, place.layers), []).append(name)
    return found


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("bert", "encoder.layer."),
        ("roberta", "encoder.layer."),
        ("distilbert", "transformer.layer."),
        ("gpt2", "h."),
        ("llama", "layers."),
        ("vit", "layers."),
    ],
)
def test_depth_is_the_index_of_the_layer(family, layer):
    found = depths(family)
    assert set(found) == {(None, 0), (0, 2), (1, 2)}
    for depth in (0, 1):
        assert all(name.startswith(f"{layer}{depth}.") for name in found[depth, 2])
    assert not any(layer in name for name in found[None, 0])


def test_encoder_and_decoder_are_two_stacks():
    model = tiny.bart_config()
    model.encoder_layers, model.decoder_layers = 3, 1
    places = places_of(dict(BartModel(model).named_parameters()))
    assert places["encoder.layers.2.fc1.weight"] == Place("linear", 2, 3)
    assert places["decoder.layers.0.fc1.weight"] == Place("linear", 0, 1)
    assert places["shared.weight"] == Place("embedding", None, 0)
    places = places_of(dict(T5Model(tiny.t5_config()).named_parameters()))
    first = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for stack in ("encoder", "decoder"):
        assert places[f"{stack}.{first}"] == Place("embedding", 0, 2)
        assert places[f"{stack}.block.1.layer.0.layer_norm.weight"] == Place("norm", 1, 2)
        assert places[f"{stack}.final_layer_norm.weight"] == Place("norm", None, 0)


def test_a_prefix_and_the_order_of_the_names_change_nothing():
    names = ["bert.encoder.layer.10.output.dense.weight", "bert.encoder.layer.2.output.dense.bias"]
    places = places_of({names[1]: torch.zeros(3), names[0]: torch.zeros(3, 3)})
    assert places == {names[1]: Place("bias", 2, 11), names[0]: Place("linear", 10, 11)}


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("vision_model.pre_layrnorm.weight", (8,), "norm"),
        ("visual.ln_pre.bias", (8,), "norm"),
        ("layer1.0.bn1.weight", (8,), "norm"),
        ("vision_model.embeddings.class_embedding", (8,), "embedding"),
        ("vision_model.embeddings.patch_embedding.weight", (8, 3, 4, 4), "other"),
        ("vision_model.embeddings.patch_embedding.bias", (8,), "bias"),
        ("electra.embeddings_project.weight", (8, 4), "linear"),
        ("encoder.embedding_hidden_mapping_in.weight", (8, 4), "linear"),
        ("attention.relative_position_bias_table", (49, 2), "embedding"),
        ("attn.in_proj_weight", (24, 8), "linear"),
        ("attn.in_proj_bias", (24,), "bias"),
        ("lm_head.weight", (20, 8), "linear"),
        ("layer.0.lambda1", (8,), "other"),
        ("logit_scale", (), "other"),
    ],
)
def test_names_beyond_these_models(name, shape, role):
    assert role_of(name, shape) == role
