"""Examples that influence each other are found, and each is differentiated by itself."""

import logging

import pytest
import torch
from torch import nn

from fmerge.fisher import FisherAccumulator, estimate_fisher
from fmerge.fisher.engine.independence import interacting
from tests.compare import assert_same

ESTIMATORS = ["exact", "sampled", "empirical"]


class Mixing(nn.Module):
    """Two layers, between which the examples meet in a way of choice."""

    def __init__(self, mix):
        super().__init__()
        torch.manual_seed(0)
        self.below = nn.Linear(4, 5)
        self.above = nn.Linear(5, 3)
        self.mix = mix

    def forward(self, batch):
        hidden = self.mix(self.below(batch["x"]).tanh())
        return self.above(hidden.tanh()).log_softmax(dim=-1)


def normalised(hidden):  # batch norm without running statistics
    if len(hidden) == 1:
        return hidden
    return (hidden - hidden.mean(0)) / (hidden.std(0) + 0.1)


MIXES = {
    "batch statistics": normalised,
    "the mean of the batch": lambda hidden: hidden + 0.5 * hidden.mean(0),
    "the example before": lambda hidden: hidden + 0.5 * hidden.cumsum(0),
    "the largest of the batch": lambda hidden: hidden / hidden.abs().amax(),
    "attention over the batch": lambda hidden: (hidden @ hidden.T).softmax(1) @ hidden,
    "a little": lambda hidden: hidden + 0.02 * hidden.mean(0),
}


def data(n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "labels": torch.randint(3, (n,), generator=generator)}


def parts(batch, size):
    return [
        {key: value[start : start + size] for key, value in batch.items()}
        for start in range(0, len(batch["x"]), size)
    ]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_fisher_is_that_of_each_example_by_itself(mix, estimator, caplog):
    module, batch = Mixing(MIXES[mix]).double(), data()
    expected = estimate_fisher(module, parts(batch, 1), module, estimator)
    for size in (2, 3, 7):
        with caplog.at_level(logging.WARNING):
            found = estimate_fisher(module, parts(batch, size), module, estimator)
        assert found.count == 7
        assert_same(found.values, expected.values)
    assert "by itself are not those in its batch" in caplog.text


@pytest.mark.parametrize("mix", ["batch statistics", "attention over the batch"])
def test_rademacher_takes_each_example_by_itself(mix):
    module, batch = Mixing(MIXES[mix]).double(), data()
    expected = estimate_fisher(module, parts(batch, 1), module, "rademacher", samples=3)
    found = estimate_fisher(module, [batch], module, "rademacher", samples=3)
    assert_same(found.values, expected.values)


def test_standard_errors_count_each_example():
    module, batch = Mixing(normalised).double(), data()
    expected = estimate_fisher(module, parts(batch, 1), module, errors="entries")
    found = estimate_fisher(module, parts(batch, 3), module, errors="entries")
    assert found.relative_error == pytest.approx(expected.relative_error)
    assert_same(found.standard_errors, expected.standard_errors)


def test_without_a_fallback_it_is_refused():
    module = Mixing(normalised).double()
    accumulator = FisherAccumulator(module, module, fallback="error")
    with pytest.raises(ValueError, match=r"not those in its batch.*above\.bias.*batches of one"):
        accumulator.add(data())


def test_running_statistics_do_not_mix():
    """Batch norm in eval mode normalises every example by the same numbers."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    module(data(20)["x"])  # moves the running statistics

    def log_probs(batch):
        return module(batch["x"]).log_softmax(dim=-1)

    module.eval()
    assert not interacting(log_probs, data(), 7, module.parameters())
    expected = estimate_fisher(module, parts(data(), 1), log_probs)
    assert_same(estimate_fisher(module, [data()], log_probs).values, expected.values)


def test_statistics_of_the_batch_in_batch_norm():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    module = nn.Sequential(nn.Conv2d(1, 2, 2), norm, nn.Flatten(), nn.Linear(18, 3)).double()

    def log_probs(batch):
        return module(batch["x"]).log_softmax(dim=-1)

    batch = {"x": torch.randn(5, 1, 4, 4, dtype=torch.float64)}
    expected = estimate_fisher(module, parts(batch, 1), log_probs)
    for size in (2, 5):
        assert_same(estimate_fisher(module, parts(batch, size), log_probs).values, expected.values)


def test_fewer_candidates_by_themselves_are_no_influence():
    def log_probs(batch):
        sizes = batch["sizes"]
        values = batch["x"][:, : int(sizes.max())]
        return values.masked_fill(torch.arange(values.shape[1]) >= sizes[:, None], -torch.inf)

    batch = {"x": data()["x"], "sizes": torch.tensor([2, 3, 4, 2, 3, 4, 2])}
    assert not interacting(log_probs, batch, 7, ())
    assert interacting(lambda batch: log_probs(batch) + len(batch["x"]), batch, 7, ())


def test_what_cannot_be_run_alone_is_said(caplog):
    def log_probs(batch):
        return batch["x"].view(7, 4).log_softmax(dim=-1)

    with caplog.at_level(logging.WARNING):
        assert not interacting(log_probs, data(), 7, ())
    assert "could not be run by itself" in caplog.text


def test_random_answers_are_still_refused():
    module = Mixing(lambda hidden: hidden + torch.randn_like(hidden)).double()
    with pytest.raises(ValueError, match="other values for the same batch a second time"):
        FisherAccumulator(module, module).add(data())


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "rademacher"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_log_likelihoods_that_are_no_numbers_are_named_in_any_batch(estimator, wrong, size):
    module = Mixing(lambda hidden: hidden).double()

    def log_probs(batch):
        values = module(batch)
        bad = (batch["x"] == data()["x"][4]).all(dim=1)
        return torch.where(bad[:, None], wrong, values)

    message = "the log-likelihoods of an example are not numbers, or all are -inf"
    with pytest.raises(ValueError, match=message):
        estimate_fisher(module, parts(data(), size), log_probs, estimator)
