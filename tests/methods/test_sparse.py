"""TIES, DARE, DELLA and Breadcrumbs: worked cases, limits, and what the draws depend on."""

import subprocess
import sys

import pytest
import torch

from fmerge.methods import DARE, DELLA, TIES, Breadcrumbs, TaskArithmetic
from fmerge.methods.pruning import thresholds
from tests.compare import SAMPLED, assert_same


def one(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


def random_model(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (6, 5), "a.bias": (6,), "scale": (), "embedding": (4, 3)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


ZERO = one(0.0, 0.0, 0.0, 0.0)


def test_ties_by_hand():
    # half of four entries: (4, 0, −3, 0) and (0, 2, 5, 0).  λ = (0.5, 0.25):
    # sums 2, 0.5, −1.5 + 1.25 < 0, 0.  Agreeing: first alone, second alone, first alone, none.
    experts = [one(4.0, 1.0, -3.0, 2.0), one(1.0, 2.0, 5.0, -1.0)]
    expected = one(4.0, 2.0, -3.0, 0.0)
    assert_same(TIES(density=0.5).merge(ZERO, experts, [0.5, 0.25]), expected)
    # λ = (0.5, 0.5): the third sum is +1, so the second expert's 5 stays; scale halves all
    halved = one(2.0, 1.0, 2.5, 0.0)
    assert_same(TIES(density=0.5, scale=0.5).merge(ZERO, experts, [0.5, 0.5]), halved)


def test_ties_weighs_the_experts_that_agree():
    # all kept; entry 1: (0.5·4 + 0.25·1)/0.75; entry 2: signs + + ; entry 3: −1.5 + 1.5 = 0 keeps
    # the base; entry 4: 0.5·2 − 0.25·1 > 0, the first alone.
    experts = [one(4.0, 1.0, -3.0, 2.0), one(1.0, 2.0, 6.0, -1.0)]
    base = one(1.0, 1.0, 1.0, 1.0)
    moved = [{"w": base["w"] + expert["w"]} for expert in experts]
    expected = one(1 + 2.25 / 0.75, 1 + 1.0 / 0.75, 1.0, 3.0)
    assert_same(TIES(density=1.0).merge(base, moved, [0.5, 0.25]), expected)


def test_ties_trims_over_the_whole_task_vector():
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    expert = {"a": torch.tensor([9.0, 8.0]), "b": torch.tensor([1.0, -2.0])}
    whole = TIES(density=0.5).merge(base, [expert], [1.0])
    assert_same(whole, {"a": torch.tensor([9.0, 8.0]), "b": torch.zeros(2)})
    each = TIES(density=0.5, per_tensor=True).merge(base, [expert], [1.0])
    assert_same(each, {"a": torch.tensor([9.0, 0.0]), "b": torch.tensor([0.0, -2.0])})


def test_ties_of_equal_signs_without_trimming_is_the_mean():
    base = random_model(0)
    vectors = [{k: v.abs() + 0.1 for k, v in random_model(m).items()} for m in (1, 2, 3)]
    experts = [{k: base[k] + v for k, v in vector.items()} for vector in vectors]
    expected = {k: base[k] + sum(v[k] for v in vectors) / 3 for k in base}
    assert_same(TIES(density=1.0).merge(base, experts, [0.2] * 3), expected)


@pytest.mark.parametrize("density", [1e-9, 0.1, 0.37, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_threshold_is_the_kth_largest_magnitude(density, scale):
    vectors = [scale * v.float() for v in random_model(3).values()]
    ordered = torch.cat([v.reshape(-1) for v in vectors]).abs().sort(descending=True).values
    expected = ordered[max(1, round(density * len(ordered))) - 1]
    parts = [(0, one) for one in vectors]
    assert thresholds(lambda: parts, density, 1) == [float(expected)]


def test_the_threshold_of_equal_entries_keeps_them_all():
    base = {"w": torch.zeros(6)}
    expert = {"w": torch.tensor([2.0, -2.0, 2.0, 1.0, 0.0, 0.0])}
    kept = TIES(density=1 / 6).merge(base, [expert], [1.0])
    assert_same(kept, {"w": torch.tensor([2.0, -2.0, 2.0, 0.0, 0.0, 0.0])})


def test_dare_drops_and_rescales():
    base, expert = {"w": torch.ones(20000)}, {"w": torch.full((20000,), 3.0)}
    change = DARE(drop=0.75).merge(base, [expert], [0.5])["w"] - 1
    # 0.5 · 2 / (1 − 0.75) = 4 where kept
    assert set(change.tolist()) == {0.0, 4.0}
    assert float((change > 0).double().mean()) == pytest.approx(0.25, rel=5 * SAMPLED)


@pytest.mark.parametrize("method", [DARE(drop=0.0), DELLA(drop=0, epsilon=0, election="none")])
def test_dropping_nothing_is_task_arithmetic(method):
    base, experts = random_model(0), [random_model(1), random_model(2)]
    expected = TaskArithmetic().merge(base, experts, [0.3, 0.6])
    assert_same(method.merge(base, experts, [0.3, 0.6]), expected)


def test_dare_that_drops_nothing_and_elects_is_ties_that_trims_nothing():
    base, experts = random_model(0), [random_model(1), random_model(2)]
    expected = TIES(density=1.0, scale=0.5).merge(base, experts, [0.3, 0.6])
    merged = DARE(drop=0.0, election="ties", scale=0.5).merge(base, experts, [0.3, 0.6])
    assert_same(merged, expected)


@pytest.mark.parametrize("kind", [DARE, DELLA])
def test_dropping_is_unbiased(kind):
    # 20 seeds × 1,000 equal rows: 20,000 draws an entry, a standard deviation of 0.6 %
    rows = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=torch.float64).repeat(1000, 1)
    base, experts = {"w": torch.zeros_like(rows)}, [{"w": rows}, {"w": rows}]
    merged = [
        kind(seed=seed, election="none").merge(base, experts, [0.5, 0.5])["w"] for seed in range(20)
    ]
    assert_same({"w": torch.stack(merged).mean((0, 1))}, {"w": rows[0]}, rtol=SAMPLED, atol=0)


def test_each_expert_and_each_tensor_has_draws_of_its_own():
    base = {"a": torch.zeros(200), "b": torch.zeros(200)}
    expert = {"a": torch.ones(200), "b": torch.ones(200)}
    first = DARE().merge(base, [expert, base], [1.0, 1.0])
    second = DARE().merge(base, [base, expert], [1.0, 1.0])
    for one_mask, other in ((first["a"], first["b"]), (first["a"], second["a"])):
        assert 0.3 < float((one_mask == other).double().mean()) < 0.7
    assert not torch.equal(DARE(seed=1).merge(base, [expert], [1.0])["a"], first["a"])


@pytest.mark.parametrize("kind", [DARE, DELLA])
def test_draws_do_not_depend_on_the_order_of_the_tensors(kind):
    base, experts = random_model(0), [random_model(1), random_model(2)]
    merged = kind().merge(base, experts, [0.5, 0.5])
    torch.rand(3)  # nor on the global generator
    turned = [dict(reversed(model.items())) for model in (base, *experts)]
    assert_same(kind().merge(turned[0], turned[1:], [0.5, 0.5]), merged, rtol=0, atol=0)


def test_draws_do_not_depend_on_the_process():
    code = (
        "import torch; from fmerge.methods import DARE;"
        "m = {'w': torch.zeros(40)}, {'w': torch.ones(40)};"
        "print((DARE(seed=7).merge(m[0], [m[1]], [1.0])['w'] > 0).int().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = DARE(seed=7).merge({"w": torch.zeros(40)}, [{"w": torch.ones(40)}], [1.0])["w"] > 0
    assert done.stdout.strip() == str(here.int().tolist())


def test_della_keeps_large_entries_more_often():
    # rows of four: ranks 1, 0, 3, 2 by magnitude; p = 0.5, ε = 0.4: keep = 0.5 − 0.4(½ − (r+½)/4)
    keep = torch.tensor([0.45, 0.35, 0.65, 0.55], dtype=torch.float64)
    rows = torch.tensor([2.0, 1.0, -4.0, 3.0], dtype=torch.float64).repeat(20000, 1)
    rows *= torch.arange(1, 20001, dtype=torch.float64)[:, None]  # ranks are those of the row
    method = DELLA(drop=0.5, epsilon=0.4, election="none")
    merged = method.merge({"w": torch.zeros_like(rows)}, [{"w": rows}], [1.0])["w"]
    assert_same({"w": (merged != 0).double().mean(0)}, {"w": keep}, rtol=SAMPLED)
    assert_same({"w": (merged / rows).amax(0)}, {"w": 1 / keep})


def test_breadcrumbs_by_hand():
    # ten entries: the three smallest (1, 2, 3) and the two largest (9, 10) go
    vector = torch.tensor([1.0, -9.0, 2.0, 8.0, -3.0, 7.0, 4.0, -10.0, 5.0, 6.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 8.0, 0.0, 7.0, 4.0, 0.0, 5.0, 6.0])
    method = Breadcrumbs(bottom=0.3, top=0.2)
    merged = method.merge({"w": torch.zeros(10)}, [{"w": vector}], [0.5])
    assert_same(merged, {"w": 0.5 * expected})


def test_breadcrumbs_keep_what_equals_the_last_kept():
    base, expert = {"w": torch.zeros(5)}, {"w": torch.tensor([1.0, -1.0, 1.0, 2.0, -2.0])}
    assert_same(Breadcrumbs(bottom=0.2, top=0.2).merge(base, [expert], [1.0]), expert)
    # of one entry, 0.85 rounds to one: nothing is left
    merged = Breadcrumbs().merge({"w": torch.tensor(1.0)}, [{"w": torch.tensor(3.0)}], [1.0])
    assert_same(merged, {"w": torch.tensor(1.0)})


def test_breadcrumbs_that_drop_nothing_are_task_arithmetic():
    base, experts = random_model(0), [random_model(1), random_model(2)]
    merged = Breadcrumbs(bottom=0.0, top=0.0).merge(base, experts, [0.3, 0.6])
    assert_same(merged, TaskArithmetic().merge(base, experts, [0.3, 0.6]))


def test_mergekit_agrees():
    """The same numbers from mergekit's functions, where it is installed."""
    reason = "mergekit is not installed (pip install '.[mergekit]')"
    sparsify = pytest.importorskip("mergekit.sparsify", reason=reason)
    base = {"w": torch.zeros(100)}
    vectors = [torch.randn(100, generator=torch.Generator().manual_seed(m)) for m in (0, 1)]
    experts = [{"w": vector} for vector in vectors]
    crumbs = sparsify.magnitude_outliers(vectors[0], 0.6, gamma=0.1)
    merged = Breadcrumbs(bottom=0.3, top=0.1).merge(base, experts[:1], [1.0])
    assert_same(merged, {"w": crumbs})

    weights = torch.tensor([[0.7], [0.3]])
    kept = weights * torch.stack([sparsify.magnitude(vector, 0.4) for vector in vectors])
    general = pytest.importorskip(
        "mergekit.merge_methods.generalized_task_arithmetic",
        reason="mergekit's own dependencies are not installed",
    )
    mask = general.get_mask(kept)
    weight = (weights * mask).sum(0)
    expected = (kept * mask).sum(0) / torch.where(weight == 0, 1, weight)
    assert_same(TIES(density=0.4).merge(base, experts, [0.7, 0.3]), {"w": expected})
