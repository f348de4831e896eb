"""The batched engine on every layout of model, against the definition; and what it refuses."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fmerge.fisher import FisherAccumulator, estimate_fisher
from tests.compare import assert_same
from tests.fisher.cases import (
    CASES,
    VOCABULARY,
    N,
    custom,
    cut,
    definition,
    padded,
    split,
    t5_tied,
)


def rounding(expected):
    """A key's bias in attention has no gradient: its squares are rounding errors squared."""
    return 1e-12 * max(float(value.max()) for value in expected.values())


@pytest.mark.parametrize("case", CASES)
def test_fisher_is_the_definition_at_every_batch_size(case, caplog):
    model, batch, log_probs = CASES[case]()
    expected = definition(model, batch, log_probs)
    for size in (1, 3, 8):
        caplog.clear()
        found = estimate_fisher(model, split(batch, size), log_probs)
        assert_same(found.values, expected, atol=rounding(expected))
        left = [record.getMessage() for record in caplog.records]
        # rules cover every parameter of every model but the one that is made to have others
        assert len(left) == (1 if case == "custom" and size > 1 else 0), left


@pytest.mark.parametrize("fallback", ["vmap", "loop"])
def test_both_fallbacks_are_the_definition(fallback):
    model, batch, log_probs = custom()
    expected = definition(model, batch, log_probs)
    found = estimate_fisher(model, [batch], log_probs, fallback=fallback).values
    assert_same(found, expected)
    assert found["unused.weight"].count_nonzero() == 0


def test_fallback_names_the_parameters_once_and_error_refuses(caplog):
    model, batch, log_probs = custom()
    accumulator = FisherAccumulator(model, log_probs)
    with caplog.at_level(logging.WARNING):
        for part in split(batch, 4):
            accumulator.add(part)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and messages[0].endswith(": form")
    refusing = FisherAccumulator(model, log_probs, fallback="error")
    with pytest.raises(ValueError, match=r"parameters form$"):
        refusing.add(batch)
    assert refusing.count == 0


def test_a_model_that_vmap_cannot_do_goes_through_the_loop(caplog):
    model, batch, _ = custom()

    def looking(batch):
        if bool(batch["attention_mask"].all()):  # control flow that depends on data
            return model(batch["input_ids"], batch["attention_mask"])
        return model(batch["input_ids"], batch["attention_mask"]) * 1.0

    found = estimate_fisher(model, [batch], looking).values
    assert "loop" in caplog.text
    assert_same(found, definition(model, batch, looking))


def test_where_a_loop_is_needed_no_batched_pass_is_made_as_well():
    model, batch, log_probs = custom()
    sizes = []

    def counted(batch):
        sizes.append((len(batch["labels"]), torch.is_grad_enabled()))
        return log_probs(batch)

    accumulator = FisherAccumulator(model, counted, fallback="loop")
    accumulator.add(batch)
    sizes.clear()
    accumulator.add(batch)
    assert sizes == [(N, False)] + [(1, True)] * N
    assert_same(accumulator.estimate().values, definition(model, batch, log_probs))


class Wrapped(nn.Module):
    """A body that is changed by each test below."""

    def __init__(self, inner):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 6, padding_idx=0)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.inner = inner

    def forward(self, batch):
        hidden = self.embedding(batch["input_ids"])
        return self.head(self.inner(self, hidden).mean(1)).log_softmax(1)


def twice(model, hidden):
    return model.layer(model.layer(hidden).tanh())


def direct(model, hidden):
    """A use that no hook sees beside one that a hook sees."""
    return F.linear(model.layer(hidden).tanh(), model.layer.weight)


def bypassed(model, hidden):
    return model.layer.forward(hidden)


def read_as_values(model, hidden):
    return model.layer(hidden).tanh() * model.layer.weight.square().sum()


def unused_call(model, hidden):
    model.layer(hidden)
    return model.layer(hidden).tanh()


def token_first(model, hidden):
    return model.layer(hidden.transpose(0, 1)).tanh().transpose(0, 1)


def keyword(model, hidden):
    return model.layer(input=hidden)


def changed_output(model, hidden):
    return model.layer(hidden).mul_(2).add_(hidden)


def without_graph(model, hidden):
    with torch.no_grad():
        shift = model.layer(hidden)
    return hidden + shift


def one_entry(model, hidden):
    """A gate that is a single entry of a parameter, without dimensions."""
    return model.layer(hidden) * model.layer.bias[2]


@pytest.mark.parametrize(
    "inner",
    [
        twice,
        direct,
        one_entry,
        bypassed,
        read_as_values,
        unused_call,
        token_first,
        keyword,
        changed_output,
        without_graph,
    ],
)
@pytest.mark.parametrize("width", [5, N])
def test_no_way_to_use_a_weight_gives_a_wrong_number(inner, width):
    model = Wrapped(inner).double()
    batch = {**padded(width=width), "labels": torch.arange(N) % 3}
    found = estimate_fisher(model, split(batch, 4) + [batch], model).values
    assert_same(found, definition(model, batch, model))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_is_refused_by_name(reentrant):
    def inner(model, hidden):
        return checkpoint(lambda h: model.layer(h).tanh(), hidden, use_reentrant=reentrant)

    model = Wrapped(inner).double()
    with pytest.raises(RuntimeError, match="gradient checkpointing"):
        FisherAccumulator(model, model).add(padded())


def test_an_input_changed_in_place_is_refused():
    def inner(model, hidden):
        hidden = hidden * 1
        out = model.layer(hidden)
        hidden.zero_()
        return out

    model = Wrapped(inner).double()
    with pytest.raises(RuntimeError, match="in ?place"):
        FisherAccumulator(model, model).add(padded())


def test_embeddings_may_be_changed_in_place():
    """CTRL multiplies them so; the tensor that the graph starts at must not be the one changed."""
    torch.manual_seed(0)
    embedding, out = nn.Embedding(VOCABULARY, 4), nn.Linear(4, 3)
    model = nn.Sequential(embedding, out)

    def log_probs(batch):
        hidden = embedding(batch["ids"])
        hidden *= 3.0
        hidden += 1.0
        return out(hidden.tanh().mean(1)).log_softmax(1)

    batch = {"ids": torch.randint(VOCABULARY, (N, 5))}
    model.double()
    found = estimate_fisher(model, [batch], log_probs, fallback="error")
    assert_same(found.values, definition(model, batch, log_probs))


def test_one_example_s_answer_may_depend_on_another_only_if_its_gradient_does_not():
    """Rows that mix examples are found by numbers: the fallback takes the examples singly."""

    def inner(model, hidden):
        hidden = model.layer(hidden)
        return hidden + 0.1 * hidden.flip(0)

    model = Wrapped(inner).double()
    with pytest.raises(ValueError, match=r"layer\.weight"):
        FisherAccumulator(model, model, fallback="error").add(padded())


def test_layers_flags_and_modes_come_back_after_an_error():
    model, batch, log_probs = t5_tied()
    model.train()
    model.encoder.block[0].requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}

    def failing(batch):
        log_probs(batch)
        raise KeyError("after the forward pass")

    with pytest.raises(KeyError):
        FisherAccumulator(model, failing).add(batch)
    model.decoder.block[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        FisherAccumulator(model, log_probs).add(batch)
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(module.training for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_missing_candidates_are_no_numbers_nowhere():
    model, batch, log_probs = t5_tied()
    found = estimate_fisher(model, [batch], log_probs).values
    assert all(torch.isfinite(value).all() for value in found.values())


def test_answers_that_are_not_numbers_are_refused():
    model = Wrapped(twice)
    accumulator = FisherAccumulator(model, lambda batch: model(batch) * torch.nan)
    with pytest.raises(ValueError, match="not numbers"):
        accumulator.add(cut(padded(), 0, 1))


def test_half_precision_sums_in_single():
    model = Wrapped(twice).bfloat16()
    batch = padded()
    found = estimate_fisher(model, [batch], model).values
    assert all(value.dtype == torch.float32 for value in found.values())
    expected = definition(model.double(), batch, model)
    worst = max(float((found[k] - expected[k]).norm() / expected[k].norm()) for k in expected)
    assert worst < 0.1  # eight bits of mantissa


def test_autocast_sums_in_single():
    model = Wrapped(twice)
    batch = padded()
    with torch.autocast("cpu", torch.bfloat16):
        found = estimate_fisher(model, [batch], model, fallback="error").values
    expected = definition(model.double(), batch, model)
    worst = max(float((found[k] - expected[k]).norm() / expected[k].norm()) for k in expected)
    assert worst < 0.1


def test_a_model_whose_calls_change_each_time_ends_in_the_fallback():
    calls = []

    def inner(model, hidden):
        calls.append(None)
        for _ in range(len(calls)):
            model.layer(hidden)  # one more call each time, without a part in the answer
        return model.layer(hidden)

    model = Wrapped(inner).double()
    batch = padded()
    found = estimate_fisher(model, [batch], model, fallback="loop").values
    assert_same(found, definition(model, batch, model))


def test_rows_that_no_example_owns_are_recorded_as_such_when_sizes_agree():
    """Eight positions and eight examples: only the numbers tell them apart."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(VOCABULARY, 6), nn.Embedding(N, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, batch):
            hidden = self.tokens(batch["input_ids"]) + self.places(torch.arange(N))
            return self.head(hidden.tanh().mean(1)).log_softmax(1)

    torch.manual_seed(0)
    model = Positions().double()
    batch = padded()
    found = estimate_fisher(model, [batch], model, fallback="error").values
    assert_same(found, definition(model, batch, model))


def test_gradients_that_are_rounding_alone_do_not_need_the_fallback():
    """Attention that sees one position almost alone: its scores' gradients are rounding."""
    model, batch, log_probs = t5_tied()
    model.float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "decoder" in name and name.endswith((
                "SelfAttention.q.weight",
                "relative_attention_bias.weight",
            )):
                parameter.mul_(300)
    found = estimate_fisher(model, [batch], log_probs, fallback="error").values
    double = model.double()
    expected = definition(double, batch, log_probs)
    assert_same(
        found, {name: value.float() for name, value in expected.items()}, rtol=1e-2, atol=1e-6
    )
