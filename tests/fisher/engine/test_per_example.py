"""The fallback's parts, against numbers worked by hand."""

import pytest
import torch
from torch import nn

from fmerge.fisher.engine.per_example import PerExample, fit, square_gradients
from tests.compare import assert_same


def test_gradients_are_squared_for_each_seed_and_scaled():
    weight, other = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.ones(2))
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * weight  # ∂ℓ[n,c]/∂w[c] = x[n,c]
    sums = {"weight": torch.ones(2), "other": torch.zeros(2)}
    seeds = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])]
    square_gradients(values, seeds, {"weight": weight, "other": other}, sums, scale=0.5)
    # 1 + 0.5 · 1², 1 + 0.5 · (2 + 4)²
    assert sums["weight"].tolist() == [1.5, 19.0] and sums["other"].tolist() == [0, 0]


def test_a_seed_is_cut_to_the_candidates_of_the_example_alone():
    seed = torch.tensor([[0.5, 0.2, 0.0]])
    assert torch.equal(fit(seed, torch.zeros(1, 2)), seed[:, :2])
    for wrong in (torch.zeros(1, 1), torch.zeros(1, 4), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="must have the same candidates"):
            fit(seed, wrong)


@pytest.mark.parametrize("fallback", ["vmap", "loop"])
def test_each_example_is_squared_by_itself(fallback):
    layer = nn.Linear(2, 1, bias=False).double()
    batch = {"x": torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=torch.float64)}
    sums = {"weight": torch.zeros(1, 2, dtype=torch.float64)}
    per_example = PerExample(layer, lambda batch: layer(batch["x"]), fallback)
    seed = torch.ones(2, 1, dtype=torch.float64)
    per_example.add(batch, [seed], dict(layer.named_parameters()), sums)
    assert per_example.vectorized == (fallback == "vmap")
    assert_same(sums, {"weight": torch.tensor([[10.0, 20.0]], dtype=torch.float64)})
