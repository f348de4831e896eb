"""FisherTSV: TSV-M under equal Fishers, an oracle with S and diag(F) written out, and η."""

import pytest
import torch

from fmerge.methods import TSVM, FisherTSV
from fmerge.methods.composition import Transformed
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.transforms import Trim
from tests.compare import assert_same


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def diagonal(*values):
    return {"w": torch.diag(torch.tensor(values, dtype=torch.float64))}


def whiten(columns):
    lengths, axes = torch.linalg.eigh(columns.T @ columns)
    return columns @ axes @ torch.diag(lengths**-0.5) @ axes.T


def written_out(vectors, fishers, most):
    """Δ and η with S (o·i, K) and diag(F) as matrices, and the atoms beyond ``most`` fixed."""
    count, kept = len(vectors), min(vectors[0].shape) // len(vectors)
    lefts, values, rights = zip(
        *(torch.linalg.svd(v, full_matrices=False) for v in vectors), strict=True
    )
    left = whiten(torch.cat([one[:, :kept] for one in lefts], dim=1))
    right = whiten(torch.cat([one[:kept].T for one in rights], dim=1))
    atoms = torch.stack([torch.outer(u, v).flatten() for u, v in zip(left.T, right.T, strict=True)])
    own = [torch.zeros(count * kept, dtype=torch.float64) for _ in vectors]
    for m, one in enumerate(values):
        own[m][m * kept : (m + 1) * kept] = one[:kept]
    forms = [atoms @ torch.diag(fisher.flatten()) @ atoms.T for fisher in fishers]
    mean = sum(own) / count
    free = [m * kept + k for m in range(count) for k in range(min(kept, most))]
    total, wanted = sum(forms)[free][:, free], torch.zeros(len(free), dtype=torch.float64)
    for form, one in zip(forms, own, strict=True):
        wanted += (form @ (one - mean))[free]
    found = mean.clone()
    found[free] += torch.linalg.inv(total) @ wanted

    def quadratic(d):
        return (
            sum((d - one) @ form @ (d - one) for form, one in zip(forms, own, strict=True)) / count
        )

    return (count * found @ atoms).reshape(vectors[0].shape), quadratic(mean), quadratic(found)


@pytest.mark.parametrize("shape", [(6, 6), (6, 9), (9, 6)])
@pytest.mark.parametrize(("count", "most"), [(2, 32), (3, 32), (2, 2), (3, 1)])
def test_it_is_the_formula_written_out(count, most, shape):
    base, *experts = [{"w": gaussian(m, *shape)} for m in range(count + 1)]
    fishers = [{"w": gaussian(20 + m, *shape).square() ** 2} for m in range(count)]
    coefficients = [0.9, 0.5, 0.7][:count]
    vectors = [c * (one["w"] - base["w"]) for c, one in zip(coefficients, experts, strict=True)]
    change, plain, least = written_out(vectors, [one["w"] for one in fishers], most)
    method = FisherTSV(atoms=most, scale=1.5)
    found = method.merge(base, experts, coefficients, fishers)
    assert_same(found, {"w": base["w"] + 1.5 * change}, rtol=1e-6)
    (fact,) = method.facts(MergeInputs(base, experts, coefficients, fishers))
    eta = float(plain - least)
    assert fact == (
        f"curvature in the singular subspace: η = {eta:.3g}, {eta / float(plain):.1%} of the "
        "quadratic loss of TSV-M in 1 linear layers"
    )


def test_the_whole_formula_of_the_definition():
    """d = (Σ Hₘ)⁻¹ Σ Hₘdₘ as it stands, all atoms free."""
    vectors = [gaussian(m, 4, 5) for m in (1, 2)]
    fishers = [gaussian(m, 4, 5).square() for m in (3, 4)]
    (u1, s1, v1), (u2, s2, v2) = (torch.linalg.svd(one, full_matrices=False) for one in vectors)
    left = whiten(torch.cat([u1[:, :2], u2[:, :2]], dim=1))
    right = whiten(torch.cat([v1[:2], v2[:2]]).T)
    atoms = torch.einsum("ok,ik->koi", left, right)
    forms = [torch.einsum("aoi,oi,boi->ab", atoms, fisher, atoms) for fisher in fishers]
    zeros = torch.zeros(2, dtype=torch.float64)
    own = [torch.cat([s1[:2], zeros]), torch.cat([zeros, s2[:2]])]
    d = torch.linalg.inv(forms[0] + forms[1]) @ (forms[0] @ own[0] + forms[1] @ own[1])
    expected = {"w": 2 * torch.einsum("k,koi->oi", d, atoms)}
    base, experts = {"w": torch.zeros(4, 5).double()}, [{"w": one} for one in vectors]
    found = FisherTSV().merge(base, experts, [1.0, 1.0], [{"w": one} for one in fishers])
    assert_same(found, expected, rtol=1e-6)


def test_by_hand():
    # orthogonal atoms on the diagonal: each d_k is weighted by the Fisher at its entry,
    # 2 · F₁/(F₁ + F₂) times its value
    experts = [diagonal(8.0, 6.0, 0.0, 0.0), diagonal(0.0, 0.0, 4.0, 2.0)]
    fishers = [diagonal(3.0, 1.0, 1.0, 0.0), diagonal(1.0, 1.0, 3.0, 0.0)]
    zero = diagonal(0.0, 0.0, 0.0, 0.0)
    found = FisherTSV().merge(zero, experts, [1.0, 1.0], fishers)
    # about entry 4 nobody knows anything: TSV-M
    assert_same(found, diagonal(12.0, 6.0, 6.0, 2.0), rtol=1e-6)
    # halves of 8, 6, 4 off: (4² · (3 + 1) + 3² · 2 + 2² · 4)/2; steps of 2, 0, 1 save a part
    (fact,) = FisherTSV().facts(MergeInputs(zero, experts, [1.0, 1.0], fishers))
    assert "η = 10, 20.4% of" in fact


@pytest.mark.parametrize("shape", [(6, 6), (6, 9), (9, 6), (2, 9)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_equal_fishers_give_tsvm(count, shape):
    base, *experts = [{"w": gaussian(m, *shape)} for m in range(count + 1)]
    coefficients = [1.0, 0.5, 0.7][:count]
    expected = TSVM().merge(base, experts, coefficients)
    for fisher in (gaussian(9, *shape).square(), torch.zeros(shape)):
        found = FisherTSV().merge(base, experts, coefficients, [{"w": fisher}] * count)
        assert_same(found, expected)
    rounding = MergeInputs(base, experts, coefficients, [{"w": fisher}] * count)
    assert "0.0% of" in FisherTSV().facts(rounding)[0]


def test_equal_experts_give_tsvm_under_any_fishers():
    base, expert = {"w": gaussian(0, 6, 8)}, {"w": gaussian(1, 6, 8)}
    fishers = [{"w": gaussian(m, 6, 8).square()} for m in (2, 3)]
    expected = TSVM().merge(base, [expert] * 2, [1.0, 1.0])
    assert_same(FisherTSV().merge(base, [expert] * 2, [1.0, 1.0], fishers), expected)
    assert_same(FisherTSV().merge(base, [base] * 2, [1.0, 1.0], fishers), base)
    # beside an expert that did not move
    expected = TSVM().merge(base, [base, expert], [1.0, 1.0])
    weighed = FisherTSV().merge(base, [base, expert], [1.0, 1.0], fishers)
    assert torch.linalg.matrix_rank(weighed["w"] - base["w"]) == 3


@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_the_scale_of_all_fishers_is_nothing(factor):
    base, *experts = [{"w": gaussian(m, 6, 8)} for m in range(3)]
    fishers = [{"w": gaussian(m, 6, 8).square()} for m in (3, 4)]
    expected = FisherTSV().merge(base, experts, [1.0, 0.6], fishers)
    scaled = [{"w": factor * one["w"]} for one in fishers]
    assert_same(FisherTSV().merge(base, experts, [1.0, 0.6], scaled), expected)


def test_permuted_inputs_and_outputs_permute_the_merge():
    rows, columns = gaussian(7, 6).argsort(), gaussian(8, 8).argsort()
    base, *models = [{"w": gaussian(m, 6, 8)} for m in range(5)]
    fishers = [{"w": one["w"].square()} for one in models[2:]]
    merged = FisherTSV().merge(base, models[:2], [1.0, 0.6], fishers[:2])["w"]
    moved = [{"w": one["w"][rows][:, columns]} for one in (base, *models[:2], *fishers[:2])]
    found = FisherTSV().merge(moved[0], moved[1:3], [1.0, 0.6], moved[3:])
    assert_same(found, {"w": merged[rows][:, columns]})


def test_embeddings_and_vectors_are_those_of_tsvm():
    shapes = {"word_embeddings.weight": (9, 6), "b": (4,), "c": (2, 3, 2), "s": ()}
    base, *models = [
        {name: gaussian(5 * m + i, *shape) for i, (name, shape) in enumerate(shapes.items())}
        for m in range(5)
    ]
    fishers = [{name: one.square() for name, one in model.items()} for model in models[2:]]
    expected = TSVM().merge(base, models[:2], [1.0, 0.6])
    assert_same(FisherTSV().merge(base, models[:2], [1.0, 0.6], fishers[:2]), expected)


def test_a_composition_states_the_facts_of_its_method():
    base, *experts = [{"w": gaussian(m, 6, 8)} for m in range(3)]
    fishers = [{"w": gaussian(m, 6, 8).square()} for m in (3, 4)]
    trim = Trim(0.3, per_tensor=True)
    inputs = MergeInputs(base, experts, [1.0, 0.6], fishers)
    trimmed = [
        {"w": base["w"] + trim.prepare(inputs)(m, "w", one["w"] - base["w"])}
        for m, one in enumerate(experts)
    ]
    expected = FisherTSV().facts(MergeInputs(base, trimmed, [1.0, 0.6], fishers))
    assert Transformed(trim, FisherTSV()).facts(inputs) == expected
    assert TSVM().facts(inputs) == []
