"""SCE: a case by hand, a loop over entries, limits, and mergekit."""

import pytest
import torch

from fmerge.methods import SCE
from tests.compare import assert_same
from tests.methods.peers import mergekit


def gaussian(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


ZERO = {"w": torch.zeros(4)}
PAIR = [{"w": torch.tensor([3.0, 1.0, -2.0, 0.0])}, {"w": torch.tensor([-1.0, 1.0, 2.0, 2.0])}]


def test_by_hand():
    # energies 14 and 10; votes +, +, a tie, +: 3 of the first alone; 1; nothing; 2 of the second
    merged = SCE().merge(ZERO, PAIR, [1.0, 1.0])
    assert_same(merged, {"w": torch.tensor([3.0, 1.0, 0.0, 2.0])})
    # λ = 1, 1/2: votes 2.5, 1.5, −1, 1; in entry 2 both agree on 1, of whatever weights
    merged = SCE(scale=2.0).merge(ZERO, PAIR, [1.0, 0.5])
    assert_same(merged, {"w": torch.tensor([6.0, 2.0, -4.0, 4.0])})


def test_the_weights_are_the_energies():
    experts = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 1.0])}]
    # energies 5 and 10: (1·1 + 2·3)/3, (1·2 + 2·1)/3
    expected = {"w": torch.tensor([7 / 3, 4 / 3])}
    assert_same(SCE().merge({"w": torch.zeros(2)}, experts, [0.3, 0.3]), expected)
    # only the first entry is selected: energies 1 and 9
    expected = {"w": torch.tensor([2.8, 0.0])}
    assert_same(SCE(density=0.5).merge({"w": torch.zeros(2)}, experts, [1.0, 1.0]), expected)


def test_small_task_vectors_are_weighed_as_large_ones():
    # those of real experts have squares near 1e-8, of which mergekit makes equal weights
    base, experts = {"w": gaussian(0, 5, 6)}, [gaussian(m, 5, 6) for m in (1, 2, 3)]
    changes = []
    for size in (1.0, 1e-6):
        moved = [{"w": base["w"] + size * one} for one in experts]
        changes.append((SCE(density=0.5).merge(base, moved, [1.0] * 3)["w"] - base["w"]) / size)
    assert_same({"w": changes[1]}, {"w": changes[0]}, atol=1e-8)


def by_entries(vectors, coefficients, density):
    """The three steps as loops over numbers."""
    columns = list(zip(*(vector.tolist() for vector in vectors), strict=True))
    middles = [sum(column) / len(column) for column in columns]
    spread = [
        sum((value - middle) ** 2 for value in column)
        for column, middle in zip(columns, middles, strict=True)
    ]
    most = sorted(spread, reverse=True)[: int(sum(one > 0 for one in spread) * density)]
    columns = [
        column if one in most or density == 1 else (0.0,) * len(column)
        for column, one in zip(columns, spread, strict=True)
    ]
    energies = [sum(column[m] ** 2 for column in columns) for m in range(len(vectors))]
    merged = []
    for column in columns:
        vote = sum(c * value for c, value in zip(coefficients, column, strict=True))
        stay = [m for m, value in enumerate(column) if value * vote > 0]
        weights = {m: coefficients[m] * energies[m] for m in stay}
        total = sum(weights.values())
        merged.append(sum(weights[m] * column[m] for m in stay) / total if total else 0.0)
    return torch.tensor(merged, dtype=torch.float64)


@pytest.mark.parametrize("density", [1.0, 0.6, 0.1])
@pytest.mark.parametrize("coefficients", [[1.0, 1.0, 1.0], [0.2, 0.9, 0.5]])
def test_entry_by_entry(density, coefficients):
    base, *tensors = [gaussian(m, 30) for m in range(4)]
    vectors = [tensor - base for tensor in tensors]
    merged = SCE(density).merge({"w": base}, [{"w": one} for one in tensors], coefficients)
    assert_same(merged, {"w": base + by_entries(vectors, coefficients, density)})


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 2)])
def test_limits(shape):
    base, expert, other = ({"w": gaussian(m, *shape)} for m in range(3))
    assert_same(SCE().merge(base, [expert], [1.0]), expert)
    assert_same(SCE().merge(base, [expert] * 3, [1.0, 0.5, 0.2]), expert)
    assert_same(SCE().merge(base, [expert, other], [1.0, 0.0]), expert)
    assert_same(SCE().merge(base, [base, base], [1.0, 1.0]), base)
    # where all agree nothing is salient
    assert_same(SCE(density=0.5).merge(base, [expert] * 3, [1.0] * 3), base)


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("shape", [(20,), (4, 5), (2, 3, 2, 2)])
@pytest.mark.parametrize("count", [2, 3])
def test_mergekit_agrees(count, shape, density):
    base, *tensors = [gaussian(m, *shape) for m in range(count + 1)]
    expected = mergekit("sce", "sce_merge", tensors, base, select_topk=density)
    experts = [{"w": one} for one in tensors]
    assert_same(SCE(density).merge({"w": base}, experts, [1.0] * count), {"w": expected})
