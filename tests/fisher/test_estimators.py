"""Every estimator on every module against the definition."""

import pytest
import torch
from torch import nn

from fmerge.fisher import candidate_weights, estimate_fisher
from fmerge.fisher.estimators import uniforms
from tests import oracle, tiny
from tests.compare import SAMPLED, assert_same

ESTIMATORS = ["exact", "sampled", "empirical"]


class Toy(nn.Module):
    """Dropout to catch a train mode, and a weight that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(5, 4)

    def forward(self, batch):
        hidden = torch.tanh(self.first(torch.tanh(self.first(batch["x"]))))
        return self.head(self.dropout(self.norm(hidden))).log_softmax(1)


def toy_case():
    generator = torch.Generator().manual_seed(0)
    model = Toy().double()
    batch = {
        "x": torch.randn(13, 5, generator=generator, dtype=torch.float64),
        "labels": torch.randint(4, (13,), generator=generator),
    }
    return model, batch, model


def bert_case():
    model = tiny.classifier(tiny.bert_config()).double()
    tokens = tiny.tokenizer()(tiny.sentences(13, seed=5), padding=True, return_tensors="pt")
    batch = {**tokens, "labels": torch.arange(13) % 3}

    def log_probs(batch):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return model(**inputs).logits.log_softmax(1)

    return model, batch, log_probs


CASES = {"toy": toy_case, "bert": bert_case}


def cut(batch, start, stop):
    return {key: value[start:stop] for key, value in batch.items()}


def rounding(expected):
    """A key's bias in attention has no gradient: its squares are rounding errors squared."""
    return 1e-12 * max(float(torch.as_tensor(value).max()) for value in expected.values())


def oracle_weights(estimator, batch, samples, seed):
    def exact(log_likelihoods, n):
        return log_likelihoods.exp() / log_likelihoods.exp().sum()

    def sampled(log_likelihoods, n):
        edges = exact(log_likelihoods, n).cumsum(0)
        weights = torch.zeros_like(edges)
        for u in uniforms([n], samples, seed)[0]:
            weights[int((edges <= u * edges[-1]).sum())] += 1 / samples
        return weights

    def empirical(log_likelihoods, n):
        return torch.eye(len(log_likelihoods), dtype=torch.float64)[batch["labels"][n]]

    return {"exact": exact, "sampled": sampled, "empirical": empirical}[estimator]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("size", [1, 4, 13])
def test_fisher_is_the_definition_in_float64(case, estimator, size):
    model, batch, log_probs = CASES[case]()
    model.train()  # dropout would change the numbers: eval mode must be set, and put back
    found = estimate_fisher(
        model,
        [cut(batch, i, i + size) for i in range(0, 13, size)],
        log_probs,
        estimator=estimator,
        samples=3,
        seed=7,
    )
    assert model.training
    model.eval()
    expected, count = oracle.fisher(
        model,
        [cut(batch, i, i + 1) for i in range(13)],
        log_probs,
        oracle_weights(estimator, batch, 3, 7),
    )
    assert found.count == count == 13
    assert_same(found.values, expected, atol=rounding(expected))


def test_frozen_parameters_are_left_out_and_others_stay_the_same():
    model, batch, log_probs = bert_case()
    whole = estimate_fisher(model, [batch], log_probs).values
    model.bert.embeddings.requires_grad_(False)
    part = estimate_fisher(model, [batch], log_probs).values
    assert set(whole) - set(part) == {n for n in whole if n.startswith("bert.embeddings.")}
    assert_same(part, {name: whole[name] for name in part})


def test_the_square_of_a_batch_sum_is_not_the_fisher():
    """The error that two widely used packages make would not pass the comparison above."""
    model, batch, log_probs = toy_case()
    found = estimate_fisher(model.eval(), [batch], log_probs, estimator="empirical").values
    loss = log_probs(batch)[torch.arange(13), batch["labels"]].mean()
    wrong = torch.autograd.grad(loss, model.head.weight)[0] ** 2
    with pytest.raises(AssertionError):
        assert_same({"w": wrong}, {"w": found["head.weight"]}, rtol=0.5)


def test_sampled_is_unbiased_and_seeded():
    model, batch, log_probs = toy_case()
    few = cut(batch, 0, 2)
    exact = estimate_fisher(model, [few], log_probs, "exact").values
    many = estimate_fisher(model, [few], log_probs, "sampled", samples=20_000, seed=1).values
    scale = max(float(value.max()) for value in exact.values())
    assert_same(many, exact, rtol=SAMPLED, atol=SAMPLED * scale)
    once, again, other = (
        estimate_fisher(model, [few], log_probs, "sampled", samples=1, seed=seed).values
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any(not torch.equal(once[name], other[name]) for name in once)


def test_missing_candidates_weigh_nothing():
    log_likelihoods = torch.tensor([[0.2, -1.0, -torch.inf], [-0.3, -torch.inf, -torch.inf]])
    exact = candidate_weights(log_likelihoods, "exact")
    drawn = candidate_weights(
        log_likelihoods, "sampled", uniforms=uniforms(range(2), samples=500, seed=0)
    )
    for weights in (exact, drawn):
        assert weights[0, 2] == 0 and weights[1].tolist() == [1, 0, 0]
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert abs(drawn[0, 0] - exact[0, 0]) < 0.08


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        ("empirical", "labels"),
        ("sampled", "uniform"),
        ("magic", "exact, sampled, empirical, rademacher"),
    ],
)
def test_what_an_estimator_lacks_is_said(estimator, message):
    with pytest.raises(ValueError, match=message):
        candidate_weights(torch.zeros(1, 2), estimator)


def test_rademacher_is_the_mean_over_all_signs(monkeypatch):
    """With every pattern of signs once, the mean is the exact Fisher: it is unbiased."""
    model, batch, log_probs = toy_case()
    few = cut(batch, 0, 2)
    patterns = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 8).view(-1, 2, 4)

    def every(indices, samples, candidates, seed):
        return patterns.transpose(0, 1)

    exact = estimate_fisher(model, [few], log_probs, "exact").values
    monkeypatch.setattr("fmerge.fisher.accumulator.signs", every)
    found = estimate_fisher(model, [few], log_probs, "rademacher", samples=256).values
    assert_same(found, exact)


def test_rademacher_is_seeded_and_near_the_exact_fisher():
    model, batch, log_probs = toy_case()
    exact = estimate_fisher(model, [batch], log_probs, "exact").values
    many = estimate_fisher(model, [batch], log_probs, "rademacher", samples=2_000, seed=1).values
    total = sum(float(value.sum()) for value in exact.values())
    assert abs(sum(float(value.sum()) for value in many.values()) / total - 1) < 0.1
    once, again, other = (
        estimate_fisher(model, [batch], log_probs, "rademacher", samples=1, seed=seed).values
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any(not torch.equal(once[name], other[name]) for name in once)
