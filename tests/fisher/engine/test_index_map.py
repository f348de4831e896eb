"""Rearrangements of parameters: where their entries come from, and their squared gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fmerge.fisher import estimate_fisher
from fmerge.fisher.engine.gradients import Pullback, Scattered
from fmerge.fisher.engine.squares import add_squares
from fmerge.fisher.engine.tracer import Tracer
from fmerge.fisher.engine.tracked_tensor import TrackedTensor
from tests.compare import assert_same
from tests.fisher.cases import definition, padded

MASK = torch.arange(4) < 3
REARRANGEMENTS = {
    "permute": lambda u: u.permute(1, 0),
    "slice and unsqueeze": lambda u: u[None, 1:, ::2],
    "reshape": lambda u: u.reshape(2, -1).transpose(0, 1),
    "chunk": lambda u: u.chunk(2)[1],
    "repeated rows": lambda u: u[torch.tensor([0, 2, 2, 1])],
    "where": lambda u: torch.where(MASK, u, -1e9),
    "where not": lambda u: torch.where(MASK, u.new_zeros(()), u[:, None]),
    "cast": lambda u: u.double().contiguous(),
    "rows of a table": lambda u: F.embedding(torch.tensor([[3, 0], [0, 5]]), u).permute(2, 0, 1),
}


@pytest.mark.parametrize("name", REARRANGEMENTS)
def test_entries_are_those_that_were_rearranged(name):
    parameter = nn.Parameter(torch.randn(6, 4))
    tracer = Tracer({parameter: "table"}, 7, {})
    with tracer.active():
        u = REARRANGEMENTS[name](parameter)
        assert type(u) is TrackedTensor
        entries = tracer._index_map.entries(u)
    u, flat = u.detach().as_subclass(torch.Tensor).float(), parameter.detach().flatten()
    assert (entries >= 0).any() and entries.shape == u.shape
    assert torch.equal(torch.where(entries < 0, 0, flat[entries]), torch.where(entries < 0, 0, u))
    assert bool((entries < 0).any()) == ("where" in name)


@pytest.mark.parametrize(
    "change", [lambda u: u * 2, lambda u: u.T.sin(), lambda u: u.permute(1, 0).clone().mul_(2)]
)
def test_entries_that_were_changed_are_not_entries(change):
    parameter = nn.Parameter(torch.randn(6, 4))
    tracer = Tracer({parameter: "table"}, 7, {})
    with tracer.active():
        assert tracer._index_map.entries(change(parameter)) is None


class Biased(nn.Module):
    """A bias of every token's features, read from a table, masked, and met by each example."""

    def __init__(self, bend=None):
        super().__init__()
        self.tokens, self.biases = nn.Embedding(50, 6), nn.Embedding(5, 2)
        self.head = nn.Linear(6, 3)
        self.bend = bend

    def forward(self, batch):
        hidden = self.tokens(batch["input_ids"])
        t = hidden.shape[1]
        places = torch.arange(3 * t).view(t, 3) % 5
        bias = self.biases(places).permute(2, 1, 0).flatten(0, 1).T[None]
        if self.bend is not None:
            bias = self.bend(bias)
        for last in (t, t - 1):
            seen = torch.where(torch.arange(t)[:, None] < last, bias, 0.5)
            hidden = hidden + seen
        return self.head(hidden.tanh().mean(1)).log_softmax(1)


@pytest.mark.parametrize(
    ("bend", "kind"), [(None, Scattered), (torch.sin, Pullback), (lambda bias: 2 * bias, Pullback)]
)
def test_fisher_of_a_bias_that_all_examples_share_is_the_definition(bend, kind, monkeypatch):
    from fmerge.fisher.engine import engine

    kinds = set()

    def seen(uses, total):
        kinds.update(type(use) for use in uses)
        add_squares(uses, total)

    monkeypatch.setattr(engine, "add_squares", seen)
    torch.manual_seed(0)
    model = Biased(bend).double()
    batch = padded()
    found = estimate_fisher(model, [batch], model, fallback="error").values
    assert_same(found, definition(model, batch, model))
    assert kind in kinds
