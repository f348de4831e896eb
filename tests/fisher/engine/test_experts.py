"""Fused experts of mixtures, of every layout, and where their rule does not hold."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from fmerge.fisher import estimate_fisher
from fmerge.fisher.engine.experts import Routed, Routing
from fmerge.fisher.engine.rules import FUSED_EXPERTS, rule_of
from fmerge.fisher.engine.sketch import Sketch
from tests.compare import assert_same
from tests.fisher.cases import N, definition

E, WIDTH = 4, 6


class Config:
    _experts_implementation = "eager"


class Experts(nn.Module):
    """An eager loop over tokens, which shares nothing with a sorted product."""

    def __init__(self, config):
        super().__init__()
        self.num_experts, self.act_fn = E, ACT2FN["silu"]
        width = 2 * WIDTH if self.gated else WIDTH
        up = (E, WIDTH, width) if self.transposed else (E, width, WIDTH)
        name = "gate_up_proj" if self.gated else "up_proj"
        shapes = {name: up, "down_proj": (E, WIDTH, WIDTH)}
        if self.biased:
            shapes |= {f"{name}_bias": (E, width), "down_proj_bias": (E, WIDTH)}
        for own, shape in shapes.items():
            self.register_parameter(own, nn.Parameter(torch.randn(shape) / 2))

    def product(self, name, expert, x):
        matrix = getattr(self, name)[expert]
        y = x @ matrix if self.transposed else matrix @ x
        return y + getattr(self, f"{name}_bias")[expert] if self.biased else y

    def forward(self, hidden, index, weights):
        rows = []
        for x, experts, shares in zip(hidden, index, weights, strict=True):
            total = torch.zeros_like(x)
            for expert, share in zip(experts.tolist(), shares, strict=True):
                up = self.product("gate_up_proj" if self.gated else "up_proj", expert, x)
                inner = self._apply_gate(up) if self.gated else self.act_fn(up)
                total = total + share * self.product("down_proj", expert, inner)
            rows.append(total)
        return torch.stack(rows)


def experts(transposed=False, biased=False, gated=True):
    kinds = {"transposed": transposed, "biased": biased, "gated": gated}
    flags = {"is_transposed": transposed, "has_bias": biased, "has_gate": gated}
    return use_experts_implementation(**flags)(type("Own", (Experts,), kinds))(Config())


class Model(nn.Module):
    def __init__(self, layer, token_first=False):
        super().__init__()
        self.first, self.router, self.head = (nn.Linear(WIDTH, o) for o in (WIDTH, E, 3))
        self.experts, self.token_first = layer, token_first

    def forward(self, batch):
        hidden = self.first(batch["x"]).tanh()
        shares, index = self.router(hidden).softmax(-1).topk(2, dim=-1)
        if self.token_first:
            hidden, shares, index = (one.transpose(0, 1) for one in (hidden, shares, index))
        hidden, shares, index = (one.flatten(0, 1) for one in (hidden, shares, index))
        found = self.experts(hidden, index, shares)
        found = found.unflatten(0, (-1, N if self.token_first else batch["x"].shape[1]))
        if self.token_first:
            found = found.transpose(0, 1)[: len(batch["x"])]
        pooled = (found * batch["mask"][..., None]).sum(1) / batch["mask"].sum(1, keepdim=True)
        return self.head(pooled.tanh()).log_softmax(1)


def case(layer, width=3, **options):
    torch.manual_seed(0)
    model = Model(layer, **options).double()
    lengths = torch.randint(1, width + 1, (N, 1))
    mask = (torch.arange(width) < lengths).double()
    return model, {"x": torch.randn(N, width, WIDTH, dtype=torch.float64), "mask": mask}


@pytest.mark.parametrize(
    "options",
    [{}, {"biased": True, "transposed": True}, {"gated": False}],
    ids=["mixtral", "gpt-oss", "not gated"],
)
def test_the_fisher_is_the_definition(options):
    torch.manual_seed(1)
    layer = experts(**options)
    assert rule_of(layer) is FUSED_EXPERTS
    model, batch = case(layer)
    found = estimate_fisher(model, [batch], model, fallback="error").values
    assert_same(found, definition(model, batch, model))


def test_one_token_each_and_a_frozen_matrix():
    layer = experts()
    layer.down_proj.requires_grad_(False)
    model, batch = case(layer, width=1)
    found = estimate_fisher(model, [batch], model, fallback="error").values
    assert "experts.down_proj" not in found
    assert_same(found, {k: v for k, v in definition(model, batch, model).items() if k in found})


def test_a_call_by_names_is_left_to_the_fallback():
    model, batch = case(experts())
    own = model.experts

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = own

        def forward(self, hidden, index, weights):
            return self.own(hidden=hidden, index=index, weights=weights)

    model.experts = Named()
    with pytest.raises(ValueError, match=r"experts\.own\.down_proj, experts\.own\.gate_up_proj"):
        estimate_fisher(model, [batch], model, fallback="error")


def test_what_the_rule_does_not_know_is_not_covered():
    layer = experts()
    layer._is_expert_parallel = True
    assert rule_of(layer) is None
    layer = experts()
    layer.__class__ = type("Twice", (type(layer),), {"forward": lambda self, *a: 2 * a[0]})
    assert rule_of(layer) is None


def test_the_form_s_gradients_total_and_split_agree():
    torch.manual_seed(0)
    experts = torch.tensor([0, 0, 0, 2, 2])
    routing = Routing(experts, torch.tensor([0, 0, 2, 1, 2]), 3, False)
    form = Routed(torch.randn(5, 2), torch.randn(5, 3), routing, 3)
    each = torch.zeros(3, 3, 2, 3)
    for n in range(3):
        form.add_gradient(n, each[n])
    expected = torch.zeros(3, 3, 2, 3)
    for pair, (e, n) in enumerate(zip(experts, routing.owners, strict=True)):
        expected[n, e] += torch.outer(form.left[pair], form.right[pair])
    torch.testing.assert_close(each, expected)
    sketch = Sketch(torch.randn(8, 3), torch.randn(8, 6))
    torch.testing.assert_close(form.total(sketch), sketch.of(expected.sum(0)))
    for expert, outer in form.by_expert():
        products = outer.left.transpose(1, 2) @ outer.right
        present = expected[:, expert].flatten(1).any(1)
        torch.testing.assert_close(products, expected[present, expert])
