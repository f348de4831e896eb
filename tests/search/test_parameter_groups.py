"""Groups partition the tensors, and a merge in groups is the merge of each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from fmerge.errors import UserError
from fmerge.merging.assembler import Assembler
from fmerge.methods import DARE, SLERP, DFMerge, FisherMerge, TaskArithmetic
from fmerge.search.parameter_groups import coefficient_names, partition
from tests import tiny


def bert_names():
    return [n for n, _ in tiny.classifier(tiny.bert_config()).named_parameters()]


def t5_names():
    return [n for n, _ in AutoModelForSeq2SeqLM.from_config(tiny.t5_config()).named_parameters()]


SEGMENTS = ["embeddings", "layer", "0", "1", "2", "attention", "mlp", "norm", "w", "shared", "x"]
NAMES = st.lists(
    st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5).map(".".join),
    min_size=1,
    max_size=20,
    unique=True,
)
GROUPS = st.one_of(
    st.sampled_from(["whole", "kind"]),
    st.integers(1, 4),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "norm", r"\d", "^(?!.*x)"])),
)


@given(NAMES, GROUPS)
def test_every_tensor_is_in_exactly_one_group(names, groups):
    try:
        parts = partition(names, groups)
    except UserError:
        assert groups != "whole"  # the others may not fit the names
        return
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert all(parts.values())
    for part in parts.values():  # in the order of the model
        assert part == [name for name in names if name in part]


def test_kinds_of_bert():
    parts = partition(bert_names(), "kind")
    assert list(parts) == ["embeddings", "attention", "mlp", "other"]
    layer = "bert.encoder.layer.1."
    assert "bert.embeddings.LayerNorm.weight" in parts["embeddings"]
    assert layer + "attention.self.query.weight" in parts["attention"]
    assert layer + "attention.output.dense.bias" in parts["attention"]
    assert layer + "intermediate.dense.weight" in parts["mlp"]
    assert layer + "output.dense.weight" in parts["mlp"]
    others = {layer + "attention.output.LayerNorm.bias", layer + "output.LayerNorm.bias"}
    assert others <= set(parts["other"]) and "bert.pooler.dense.weight" in parts["other"]


@pytest.mark.parametrize(
    ("config", "attention", "mlp", "embedding"),
    [
        (
            tiny.gpt2_config,
            "transformer.h.0.attn.c_proj.weight",
            "transformer.h.1.mlp.c_fc.bias",
            "transformer.wpe.weight",
        ),
        (
            tiny.llama_config,
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.mlp.up_proj.weight",
            "model.embed_tokens.weight",
        ),
        (
            tiny.bart_config,
            "model.decoder.layers.0.encoder_attn.k_proj.weight",
            "model.encoder.layers.0.fc1.weight",
            "model.decoder.embed_positions.weight",
        ),
    ],
)
def test_kinds_of_other_models(config, attention, mlp, embedding):
    model = AutoModelForSequenceClassification.from_config(config())
    names = [name for name, _ in model.named_parameters()]
    parts = partition(names, "kind")
    assert attention in parts["attention"] and mlp in parts["mlp"]
    assert embedding in parts["embeddings"]
    norms = [n for n in names if "norm" in n.lower() or ".ln_" in n]
    assert norms and not set(norms) & {*parts["attention"], *parts["mlp"]}


def test_kinds_of_t5():
    parts = partition(t5_names(), "kind")
    assert parts["embeddings"] == ["shared.weight"]
    assert all("Attention" in name for name in parts["attention"])
    assert all("DenseReluDense" in name for name in parts["mlp"])
    assert all("norm" in name for name in parts["other"])


def test_slices_of_depth():
    # 2 encoder and 2 decoder blocks
    parts = partition(t5_names(), 2)
    assert list(parts) == ["block0", "block1"]
    assert "shared.weight" in parts["block0"]
    assert "encoder.final_layer_norm.weight" in parts["block0"]
    assert all(name.startswith("decoder.") for name in parts["block1"])
    uneven = partition([f"m.{i}.w" for i in range(5)], 2)
    assert uneven == {"block0": ["m.0.w", "m.1.w", "m.2.w"], "block1": ["m.3.w", "m.4.w"]}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"low": r"layer\.0"}, "tensor 'embed.w' and 1 more match no expression"),
        ({"low": r"layer\.0", "rest": "w"}, r"tensor 'layer.0.w' matches low, rest"),
        ({"all": ".", "none": "xyz"}, "of 'none', xyz, matches nothing"),
        ({"bad": "("}, r"the expression of 'bad', \("),
        ({"a/b": "."}, "'a/b' is no name for a group"),
        (3, "is 3, but the model has 2 numbered layers"),
        (0, "is 0, but the model has 2 numbered layers"),
    ],
)
def test_groups_that_do_not_fit_are_said(groups, message):
    with pytest.raises(UserError, match=message):
        partition(["embed.w", "layer.0.w", "layer.1.w"], groups)


def test_kinds_that_are_not_known_are_said():
    with pytest.raises(UserError, match="'kind' knows none of the tensors, such as 'p.q'"):
        partition(["p.q", "r"], "kind")


def test_names_of_coefficients():
    assert coefficient_names(["a", "b"], [""]) == ["a", "b"]
    assert coefficient_names(["a", "b"], ["x", "y"]) == ["a/x", "a/y", "b/x", "b/y"]


SHAPES = {"embed.w": (3, 2), "layer.0.w": (4,), "layer.1.w": (2, 2), "norm": (5,)}
GROUPED = {"low": r"layer\.0|norm", "high": r"layer\.1|embed"}


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def assembler(method, groups="whole"):
    def fisher_of(name, body):  # moves with the body, as a Fisher does
        return {key: (tensor - 0.1) ** 2 for key, tensor in body.items()}

    experts = {"a": tensors(1), "b": tensors(2)}
    fishers = {"a": tensors(3), "b": tensors(4)}
    squares = {name: {k: v**2 for k, v in one.items()} for name, one in fishers.items()}
    given = squares if method.statistic == "fisher" else None
    parts = partition(list(SHAPES), groups)
    return Assembler(method, tensors(0), experts, fisher_of, given, parts)


@pytest.mark.parametrize(
    "method",
    [
        TaskArithmetic(),
        DFMerge(),
        DFMerge(alpha=0.5),
        FisherMerge(normalize=False),
        SLERP(),
        DARE(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_equal_coefficients_in_all_groups_are_the_ungrouped_merge(method):
    whole = assembler(method).assemble({"a": 0.7, "b": 0.2})
    grouped = assembler(method, GROUPED).assemble({
        "a/low": 0.7, "a/high": 0.7, "b/low": 0.2, "b/high": 0.2
    })  # fmt: skip
    assert list(whole) == list(grouped) == list(SHAPES)
    for name in SHAPES:
        assert torch.equal(whole[name], grouped[name]), name


@pytest.mark.parametrize("method", [TaskArithmetic(), DFMerge()], ids=["TaskArithmetic", "DFMerge"])
def test_each_group_has_its_own_coefficients(method):
    grouped = assembler(method, GROUPED).assemble({
        "a/low": 0.7, "a/high": 0.1, "b/low": 0.2, "b/high": 0.9
    })  # fmt: skip
    low = assembler(method).assemble({"a": 0.7, "b": 0.2})
    high = assembler(method).assemble({"a": 0.1, "b": 0.9})
    for name in SHAPES:
        part, other = (low, high) if name in {"layer.0.w", "norm"} else (high, low)
        assert torch.equal(grouped[name], part[name])
        assert not torch.equal(grouped[name], other[name])
