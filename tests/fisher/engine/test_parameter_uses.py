"""Uses of parameters: rows by example, covered layers and the leaves of a graph."""

import pytest
import torch
from torch import nn

from fmerge.fisher.engine.gradients import Summed
from fmerge.fisher.engine.parameter_uses import (
    TensorUse,
    covered_layers,
    graph_leaves,
    inner_shape,
)
from fmerge.fisher.engine.rules import RULES


def test_inner_shape_leaves_out_the_place_of_the_rows():
    assert inner_shape(torch.ones(4, 5), 3) == (4, 5)
    assert inner_shape(torch.ones(1, 4, 5), 3) == (4, 5)


def test_covered_layers_have_rules_and_chosen_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    chosen = {model[0].bias, model[1].weight, model[2].weight, model[2].bias}
    first, second = covered_layers(model, chosen)
    assert (first.name, first.module, first.rule) == ("0", model[0], RULES[nn.Linear])
    assert list(first.parameters) == ["bias"] and first.parameters["bias"] is model[0].bias
    assert second.name == "2" and list(second.parameters) == ["weight", "bias"]


def test_the_leaves_of_a_graph_are_found_once():
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    found = graph_leaves([(a * b).sum() + a.sum(), torch.ones(2) * b])
    assert sorted(id(leaf) for leaf in found) == sorted([id(a), id(b)])
    assert graph_leaves([c]) == [c] and graph_leaves([torch.ones(2)]) == []


def test_a_shared_tensor_s_gradient_is_summed_over_each_example_s_rows():
    parameter = nn.Parameter(torch.ones(2))
    leaf = parameter.detach().expand(4, 1, 2)  # two examples of two rows
    use = TensorUse("source#1", parameter, leaf, "interleaved", [parameter])
    g = torch.arange(4.0)[:, None, None] * torch.tensor([1.0, 10.0])
    ((found, gradients),) = use.gradients(g, 2)
    assert found is parameter and type(gradients) is Summed
    assert gradients.values.tolist() == [[2.0, 20.0], [4.0, 40.0]]  # rows 0 + 2, and 1 + 3
    with torch.no_grad():
        parameter.add_(1)
    with pytest.raises(RuntimeError, match=r"changed in place after its use \('source#1'\)"):
        list(use.gradients(g, 2))
