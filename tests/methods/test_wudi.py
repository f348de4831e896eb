"""WUDI-Merging: diagonal cases by hand, the paper's loss, limits, and what is averaged."""

import pytest
import torch

from fmerge.methods import WUDI
from tests.compare import assert_same


def diagonal(*values):
    return {"w": torch.diag(torch.tensor(values, dtype=torch.float64))}


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


ZERO = diagonal(0.0, 0.0, 0.0)


def test_by_hand():
    # S₁ = (16, 9, 0)/25, S₂ = (0, 1, 4)/5, so that axis 2 has (3 · 9/25 + 1/5)/(9/25 + 1/5)
    experts = [diagonal(4.0, 3.0, 0.0), diagonal(0.0, 1.0, 2.0)]
    assert_same(WUDI().merge(ZERO, experts, [1.0, 1.0]), diagonal(4.0, 32 / 14, 2.0))
    # λ scales what is wanted, not how much it counts
    merged = WUDI(scale=2.0).merge(ZERO, experts, [0.5, 0.0])
    assert_same(merged, diagonal(4.0, 27 / 14, 0.0))


def loss(change, vectors):
    """The paper's: Σₘ ‖(Δ − τₘ)τₘᵀ‖² / ‖τₘ‖²."""
    return sum(((change - one) @ one.T).square().sum() / one.square().sum() for one in vectors)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_it_is_the_minimum_of_the_papers_loss(shape):
    base, *experts = [{"w": gaussian(m, *shape)} for m in range(4)]
    vectors = [one["w"] - base["w"] for one in experts]
    found = WUDI().merge(base, experts, [1.0] * 3)["w"] - base["w"]
    change = found.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(change, vectors), change)
    (scale,) = torch.autograd.grad(loss(change, vectors[:1]), change)
    assert gradient.abs().max() < 1e-10 * scale.abs().max()


def test_it_is_what_steps_on_the_papers_loss_end_at():
    # matrices of low rank: no input outside of their rows is touched, by steps or in closed form
    base = {"w": gaussian(0, 6, 8)}
    vectors = [gaussian(m, 6, 2) @ gaussian(10 + m, 2, 8) for m in (1, 2, 3)]
    experts = [{"w": base["w"] + one} for one in vectors]
    change = sum(vectors).clone().requires_grad_()
    steps = torch.optim.LBFGS(
        [change],
        max_iter=500,
        tolerance_change=0,
        tolerance_grad=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure():
        steps.zero_grad()
        value = loss(change, vectors)
        value.backward()
        return value

    steps.step(closure)
    found = WUDI().merge(base, experts, [1.0] * 3)
    assert_same(found, {"w": base["w"] + change.detach()}, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 3)])
def test_limits(shape):
    base, expert, other = ({"w": gaussian(m, *shape)} for m in range(3))
    assert_same(WUDI().merge(base, [expert], [1.0]), expert)
    assert_same(WUDI().merge(base, [expert] * 3, [1.0] * 3), expert)
    assert_same(WUDI().merge(base, [expert, other], [0.0, 0.0]), base)
    assert_same(WUDI().merge(base, [base, base], [1.0, 1.0]), base)
    assert_same(WUDI().merge(base, [base, expert], [1.0, 1.0]), expert)  # it asks for nothing


def test_experts_on_inputs_of_their_own_keep_their_answers():
    base = {"w": gaussian(0, 5, 6)}
    apart = torch.linalg.qr(gaussian(1, 6, 6))[0]
    vectors = [gaussian(2, 5, 3) @ apart[:3], gaussian(3, 5, 3) @ apart[3:]]
    experts = [{"w": base["w"] + one} for one in vectors]
    expected = {"w": base["w"] + sum(vectors)}
    assert_same(WUDI().merge(base, experts, [1.0, 1.0]), expected)


def test_turning_inputs_and_outputs_turns_the_merge():
    (first, _), (last, _) = (torch.linalg.qr(gaussian(m, n, n)) for m, n in ((8, 6), (9, 9)))
    base, *experts = [{"w": gaussian(m, 6, 9)} for m in range(3)]
    merged = WUDI().merge(base, experts, [0.7, 0.4])["w"]
    turned = [{"w": first @ one["w"] @ last} for one in (base, *experts)]
    assert_same(WUDI().merge(turned[0], turned[1:], [0.7, 0.4]), {"w": first @ merged @ last})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("b", ()),
        ("norm.weight", (4,)),
        ("conv.weight", (2, 3, 2)),
        ("k", (2, 3, 2, 2)),
        ("word_embeddings.weight", (5, 4)),
    ],
)
def test_other_tensors_are_averaged(name, shape):
    base, *experts = [{name: gaussian(m, *shape)} for m in range(3)]
    expected = {name: (experts[0][name] + experts[1][name]) / 2}
    assert_same(WUDI().merge(base, experts, [1.0, 1.0]), expected)
