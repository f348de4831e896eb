"""Layers' functions called without the layer: each by the rule of the layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fmerge.fisher import estimate_fisher, register_rule, unregister_rule
from fmerge.fisher.engine.rules import RULES
from tests.compare import assert_same
from tests.fisher.cases import VOCABULARY, N, definition, padded


class Body(nn.Module):
    """Parameters that each test below uses in its own way."""

    def __init__(self, inner):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, 6))
        self.square, self.fused = (nn.Parameter(torch.randn(o, 6) / 2) for o in (6, 18))
        self.bias, self.gain = (nn.Parameter(torch.randn(6) / 2) for _ in range(2))
        self.low = nn.Parameter(torch.randn(2, 6))
        self.register_buffer("head", torch.randn(3, 6))
        self.register_buffer("mean", torch.randn(6))
        self.inner = inner

    def forward(self, batch):
        hidden = self.inner(self, F.embedding(batch["input_ids"], self.table, padding_idx=0))
        pooled = (hidden * batch["attention_mask"][..., None]).mean(1)
        return F.linear(pooled, self.head).log_softmax(1)


def falcon(body, x):
    return x @ body.square.T + body.bias


def products(body, x):
    x = torch.matmul(x, body.square).tanh()
    x = x.matmul(other=body.square)  # the same weight again, from the other side
    return (body.square @ x.transpose(1, 2)).transpose(1, 2) @ body.gain[:, None] * x


def vector(body, x):
    return (x @ body.square)[..., :3].sum(-1, keepdim=True) * x.tanh()


def queries_keys_values(body, x):
    """Parts of one weight, one of them twice."""
    queries, keys, values = (F.linear(x, part) for part in body.fused.chunk(3))
    weights = (queries @ keys.transpose(1, 2)).softmax(-1)
    return (weights @ values).tanh() @ body.fused[6:12]


def overlapping(body, x):
    return F.linear(x, body.fused[:12])[..., 6:] + F.linear(x, body.fused[3:9])


def low_rank(body, x):
    """A weight that is computed from two parameters, as of an adapter."""
    return F.linear(x, body.square + 0.5 * body.low.T @ body.low, bias=body.bias)


def cast(body, x):
    return F.linear(x.float(), body.square.float()).double()


def tied(body, x):
    return F.linear(x, body.table).softmax(-1) @ body.table


def norms(body, x):
    x = F.layer_norm(x, (6,), body.gain, body.bias, 1e-3)
    x = F.rms_norm(x @ body.square, [6], weight=body.gain)
    return F.group_norm(x.transpose(1, 2), 2, body.gain, body.bias).transpose(1, 2)


def stored(body, x):
    x = F.batch_norm(x.transpose(1, 2), body.mean, body.mean.exp(), body.gain, body.bias)
    return x.transpose(1, 2)


def frozen_weight(body, x):
    return F.linear(x, body.square.detach(), body.bias)


WAYS = [
    *(falcon, products, vector, queries_keys_values, overlapping, low_rank, cast, tied, norms),
    *(stored, frozen_weight),
]


@pytest.mark.parametrize("inner", WAYS)
def test_the_fisher_is_the_definition_without_the_fallback(inner):
    model = Body(inner).double()
    batch = padded()  # as many tokens as examples: they are told apart by numbers
    found = estimate_fisher(model, [batch], model, fallback="error").values
    precision = {"rtol": 1e-4, "atol": 1e-6} if inner is cast else {}
    assert_same(found, definition(model, batch, model), **precision)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_of_torch_is_seen_inside(batch_first, cross):
    """It lays tokens along the first dimension, and hides its projections in one function."""
    torch.manual_seed(0)
    embedding, norm = nn.Embedding(VOCABULARY, 6, padding_idx=0), nn.LayerNorm(6)
    attention = nn.MultiheadAttention(6, 2, batch_first=batch_first, kdim=5 if cross else None)
    keys, head = nn.Linear(6, 5), nn.Linear(6, 3)
    model = nn.ModuleList([embedding, norm, attention, keys, head]).double()

    def log_probs(batch):
        hidden = embedding(batch["input_ids"])
        hidden = norm(hidden if batch_first else hidden.transpose(0, 1))
        other = keys(hidden) if cross else hidden
        mask = batch["attention_mask"] == 0
        hidden, _ = attention(hidden, other, hidden, key_padding_mask=mask)
        return head(hidden.tanh().mean(1 if batch_first else 0)).log_softmax(1)

    batch = padded(width=N if cross else 5)  # as many tokens as examples, or not
    found = estimate_fisher(model, [batch], log_probs, fallback="error").values
    assert_same(found, definition(model, batch, log_probs), atol=1e-12)


def test_a_weight_that_depends_on_the_batch_is_left_alone():
    """Its gradient goes on to the batch, so it must not be cut off."""

    def inner(body, x):
        weight = body.square * x.mean((1, 2)).sum().exp()  # of all examples: no rule can hold
        return F.linear(x, weight, body.bias)

    model = Body(inner).double()
    with pytest.raises(ValueError, match=r"not those in its batch"):
        estimate_fisher(model, [padded()], model, fallback="error")


def test_statistics_of_the_batch_have_no_rule():
    def inner(body, x):
        return F.batch_norm(
            x.transpose(1, 2), None, None, body.gain, body.bias, training=True
        ).transpose(1, 2)

    model = Body(inner).double()
    batch = padded()
    assert_same(
        estimate_fisher(model, [batch], model, fallback="loop").values,
        definition(model, batch, model),
    )


def test_without_the_layer_s_rule_its_function_has_none():
    model = Body(low_rank).double()
    rule = RULES[nn.Linear]
    unregister_rule(nn.Linear)
    try:
        with pytest.raises(ValueError, match=r"no rule covers.* bias, low, square"):
            estimate_fisher(model, [padded()], model, fallback="error")
    finally:
        register_rule(nn.Linear, rule)


def test_autocast_casts_as_it_would_inside_the_function():
    model = Body(falcon)
    batch = padded()
    with torch.autocast("cpu", torch.bfloat16):
        found = estimate_fisher(model, [batch], model, fallback="error").values
    expected = definition(model.double(), batch, model)
    used = ("table", "square", "bias")
    assert max(float((found[k] - expected[k]).norm() / expected[k].norm()) for k in used) < 0.1
