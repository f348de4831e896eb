"""Named tensors: layouts, hashes, and weights that are given back."""

import pytest
import torch
from torch import nn

from fmerge.errors import UserError
from fmerge.params import (
    Between,
    check_finite,
    check_same_layout,
    fingerprint,
    last_linear,
    layer_of,
    logarithms,
    params_of,
    select,
    task_vector,
    using_params,
    write_params,
)
from tests import tiny
from tests.compare import assert_same


def test_tied_parameters_stand_once_and_bodies_are_selected():
    model = tiny.classifier(tiny.bert_config())
    model.classifier.weight = nn.Parameter(torch.ones(3, 16))
    params = params_of(model)
    assert len(params) == len(list(model.parameters()))
    body = select(params, "bert.")
    assert set(params) - set(body) == {"classifier.weight", "classifier.bias"}


def test_the_last_linear_layer_is_that_of_the_head():
    model = tiny.classifier(tiny.bert_config())
    assert last_linear(model) == ("classifier", model.classifier)
    model.classifier = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    assert last_linear(model) == ("classifier.2", model.classifier[2])
    model.classifier = nn.Identity()
    assert last_linear(model) is None, "a linear layer of the body was taken"


def test_layout_errors_name_the_first_tensor_both_shapes_and_the_rest():
    reference = {"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(1)}
    check_same_layout(reference, dict(reversed(reference.items())), "base", "expert")
    with pytest.raises(
        UserError, match=r"expert: tensor 'a' is \(3, 2\), but \(2, 3\) in base, and 2"
    ):
        check_same_layout(
            reference,
            {"a": torch.zeros(3, 2), "b": torch.zeros(1), "d": torch.zeros(1)},
            "base",
            "expert",
        )
    with pytest.raises(UserError, match="'c' is no such tensor, but"):
        check_same_layout(reference, {k: reference[k] for k in "ab"}, "base", "expert")
    with pytest.raises(UserError, match=r"'b' is \(1,\), but no such tensor in base"):
        check_same_layout({"a": torch.zeros(2, 3)}, {k: reference[k] for k in "ab"}, "base", "x")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_numbers_are_named(bad):
    tensor = torch.ones(4)
    tensor[1:3] = bad
    with pytest.raises(UserError, match=r"file: tensor 'w' holds 2 NaN or infinite entries of 4"):
        check_finite({"v": torch.ones(2), "w": tensor}, "file")


def test_a_sum_that_overflows_is_no_bad_number():
    check_finite({"w": torch.full((4,), 3e38)}, "file")


def test_task_vector():
    found = task_vector({"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 1.5])})
    assert_same(found, {"w": torch.tensor([2.0, -0.5])})


def test_fingerprints_tell_models_apart():
    one = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    assert fingerprint(one) == fingerprint(dict(reversed(one.items())))
    for other in (
        one | {"b": torch.tensor([0.0, 1e-30])},
        one | {"a": torch.arange(4.0).reshape(2, 2)},
        one | {"a": torch.arange(4.0).double()},
        {"a": one["a"], "c": one["b"]},
    ):
        assert fingerprint(one) != fingerprint(other)
    assert fingerprint({"h": torch.zeros(3, dtype=torch.bfloat16)})


def test_weights_are_given_back_whatever_happens():
    module = nn.Linear(2, 1)
    before = {name: tensor.clone() for name, tensor in params_of(module).items()}
    with (
        pytest.raises(RuntimeError, match="inside"),
        using_params(module, {"weight": torch.full((1, 2), 7.0)}),
    ):
        assert module.weight.tolist() == [[7.0, 7.0]]
        raise RuntimeError("inside")
    assert_same(params_of(module), before, rtol=0, atol=0)


def test_writing_an_unknown_name_is_refused():
    with pytest.raises(KeyError, match="no parameter 'nope'"):
        write_params(nn.Linear(2, 1), {"nope": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert.encoder.layer.11.output.dense.weight", "bert.encoder.layer.11"),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", "encoder.block.3"),
        ("h.0.attn.c_attn.weight", "h.0"),
        ("bert.pooler.dense.bias", ""),
        ("scale", ""),
        ("blocks.7", ""),
    ],
)
def test_a_layer_is_a_name_up_to_its_first_number(name, layer):
    assert layer_of(name) == layer


def test_interpolated_tensors_lie_geometrically_between_the_ends():
    ends = [{"w": torch.tensor([1.0, 4.0, 0.0])}, {"w": torch.tensor([16.0, 9.0, 0.0])}]
    between = Between(*(logarithms(one) for one in ends), 0.5)
    assert_same(dict(between), {"w": torch.tensor([4.0, 6.0, 0.0])})
    assert "w" in between and "v" not in between and len(between) == 1
