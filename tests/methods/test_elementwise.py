"""Formulas in chunks: the whole formula at every boundary, and nothing of a tensor's size."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fmerge.merging.assembler import Assembler
from fmerge.methods import Average, DFMerge, FisherMerge, Isotropic, TaskArithmetic, elementwise
from fmerge.params import Between, logarithms
from tests.compare import assert_same

COEFFICIENTS = [0.7, 0.2, 0.4]
SIZE = 24  # entries of a chunk in these tests
SHAPES = {
    **{f"around {n}": (n,) for n in (1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE, 3 * SIZE + 5)},
    **{"none": (0,), "one number": (), "rows longer than a chunk": (2, 2 * SIZE + 3)},
}


def norm(fisher):
    return torch.cat([one.reshape(-1) for one in fisher.values()]).norm()


def mean(fisher):
    return torch.cat([one.reshape(-1) for one in fisher.values()]).mean()


def average(base, experts, fishers, name):
    return sum(one[name] for one in experts) / len(experts)


def isotropic(base, experts, fishers, name):
    return sum(c * one[name] for c, one in zip(COEFFICIENTS, experts, strict=True)) / sum(
        COEFFICIENTS
    )


def arithmetic(base, experts, fishers, name):
    return base[name] + sum(
        c * (one[name] - base[name]) for c, one in zip(COEFFICIENTS, experts, strict=True)
    )


def weighted(base, experts, fishers, name):
    weights = [c * one[name] / norm(one) for c, one in zip(COEFFICIENTS, fishers, strict=True)]
    top = sum(weight * one[name] for weight, one in zip(weights, experts, strict=True))
    return torch.where(sum(weights) > 0, top / sum(weights), base[name])


def tempered(base, experts, fishers, name):
    weights = [(one[name] / mean(one) + 0.1) ** 0.5 for one in fishers]
    rows = zip(weights, COEFFICIENTS, experts, strict=True)
    top = sum(weight * c * (one[name] - base[name]) for weight, c, one in rows)
    return base[name] + 3 * top / sum(weights)


# each the formula of the method's docstring, on whole tensors, out of place
FORMULAS = {
    "Average": (Average(), average),
    "Isotropic": (Isotropic(), isotropic),
    "TaskArithmetic": (TaskArithmetic(), arithmetic),
    "FisherMerge": (FisherMerge(floor=0.0, favor_target=False), weighted),
    "DFMerge": (DFMerge(epsilon=0.0, alpha=0.5, damping=0.1, normalize=True), tempered),
}


def models(dtype=torch.float64, change=lambda tensor: tensor):
    """A base, three experts and three Fishers, some of whose entries are 0 in all of them."""
    generator = torch.Generator().manual_seed(0)
    made = [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
        for _ in range(7)
    ]
    for fisher in made[4:]:
        for one in fisher.values():
            one.square_()
            one.reshape(-1)[SIZE // 2 : SIZE // 2 + 3] = 0
    base, *rest = [{name: change(one) for name, one in model.items()} for model in made]
    return base, rest[:3], rest[3:]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(elementwise, "CHUNK", SIZE // torch.get_num_threads())
    monkeypatch.setattr(elementwise, "_SMALL", 2)


def turned(tensor):
    """The same numbers, in a memory where no row is in one chunk."""
    return tensor.repeat_interleave(2, dim=-1)[..., ::2] if tensor.dim() else tensor


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("change", [lambda tensor: tensor, turned], ids=["contiguous", "strided"])
@pytest.mark.parametrize("joined", [0, 2, SIZE, 10 * SIZE])
def test_chunks_give_the_whole_formula_at_every_boundary(name, change, joined, monkeypatch):
    monkeypatch.setattr(elementwise, "_SMALL", joined)
    method, formula = FORMULAS[name]
    base, experts, fishers = models(change=change)
    assert change is not turned or not base[f"around {SIZE}"].is_contiguous()
    expected = {key: formula(base, experts, fishers, key) for key in SHAPES}
    assert_same(method.merge(base, experts, COEFFICIENTS, fishers), expected)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_numbers_are_computed_in_float32_and_rounded_once(name, dtype):
    method, formula = FORMULAS[name]
    base, experts, _ = models(dtype)
    _, _, fishers = models(torch.float32)
    exact = [{k: v.double() for k, v in one.items()} for one in (base, *experts, *fishers)]
    found = method.merge(base, experts, COEFFICIENTS, fishers)
    step = torch.finfo(dtype).eps
    for key, tensor in found.items():
        assert tensor.dtype == dtype
        expected = formula(exact[0], exact[1:4], exact[4:], key)
        slack = step * expected.abs() + 2e-6 * (1 + expected.abs())
        assert ((tensor.double() - expected).abs() <= slack).all()


@pytest.mark.parametrize("name", [n for n, one in FORMULAS.items() if one[0].statistic])
def test_interpolated_fishers_are_those_that_are_interpolated_first(name):
    method = FORMULAS[name][0]
    base, experts, fishers = models()
    logs = [logarithms(one) for one in fishers]
    lazy = [Between(one, logs[m - 1], 0.3 * m) for m, one in enumerate(logs)]
    whole = [
        {k: v ** (1 - 0.3 * m) * fishers[m - 1][k] ** (0.3 * m) for k, v in one.items()}
        for m, one in enumerate(fishers)
    ]
    expected = method.merge(base, experts, COEFFICIENTS, whole)
    assert_same(method.merge(base, experts, COEFFICIENTS, lazy), expected)


@pytest.mark.parametrize("kinds", [[torch.float32], [torch.float64, torch.float32, torch.float16]])
def test_many_small_tensors_of_several_kinds_are_joined(kinds):
    generator = torch.Generator().manual_seed(0)
    models = [
        {
            f"{i}": torch.randn(i % 3, generator=generator).to(kinds[i % len(kinds)])
            for i in range(200)
        }
        for _ in range(4)
    ]
    base, *experts = models
    found = TaskArithmetic().merge(base, experts, COEFFICIENTS)
    assert [(k, v.dtype) for k, v in found.items()] == [(k, v.dtype) for k, v in base.items()]
    base, *experts = [{k: v.double() for k, v in one.items()} for one in models]
    for kind in kinds:
        names = [key for key, tensor in found.items() if tensor.dtype == kind]
        expected = {key: arithmetic(base, experts, None, key) for key in names}
        step = max(torch.finfo(kind).eps, 1e-6)
        assert_same({k: found[k].double() for k in names}, expected, rtol=step, atol=step)


class Largest(TorchDispatchMode):
    """Remembers the most bytes that any one operation takes anew."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        known = {one.untyped_storage().data_ptr() for one in given}
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            if storage.data_ptr() not in known:
                self.bytes = max(self.bytes, storage.nbytes())
        return result


def taken(method, size, **extra):
    base, *rest = ({"w": torch.ones(size)} for _ in range(7))
    out = {"w": torch.empty(size)}
    with Largest() as largest:
        method.merge(base, rest[:3], COEFFICIENTS, rest[3:], scales=[1.0] * 3, out=out, **extra)
    return largest.bytes


@pytest.mark.parametrize("name", FORMULAS)
def test_nothing_of_a_tensors_size_is_made(name):
    method = FORMULAS[name][0]
    small, large = (taken(method, size) for size in (50 * SIZE, 500 * SIZE))
    assert small == large <= 4 * SIZE


def test_what_is_made_is_noticed():
    class Whole(TaskArithmetic):
        def merge(self, base, experts, *rest, **extra):
            return {key: experts[0][key] - one for key, one in base.items()}

    assert taken(Whole(), 50 * SIZE) == 4 * 50 * SIZE


def counted(method):
    """A method that counts how often it measures a Fisher."""
    asked = []

    class Counted(type(method)):
        def statistic_scale(self, statistic):
            asked.append(sorted(statistic))
            return super().statistic_scale(statistic)

    found = Counted()
    found.__dict__.update(method.__dict__)
    return found, asked


@pytest.mark.parametrize("parts", [None, {"x": ["around 1"], "y": [*list(SHAPES)[1:]]}])
def test_a_merger_measures_fishers_once_and_writes_over_its_last_merge(parts):
    method, asked = counted(FisherMerge(favor_target=False))
    base, experts, fishers = models(torch.float32)
    names = ["a", "b", "c"]
    given = dict(zip(names, fishers, strict=True))
    assembler = Assembler(method, base, dict(zip(names, experts, strict=True)), None, given, parts)
    keys = names if parts is None else [f"{name}/{group}" for name in names for group in parts]
    whole = [list(SHAPES)] if parts is None else list(parts.values())
    storages = set()
    for scale in (0.1, 0.5, 0.5):
        coefficients = {key: scale * (1 + i % 2) for i, key in enumerate(keys)}
        found = assembler.assemble(coefficients)
        storages |= {found[f"around {SIZE}"].data_ptr()}
        for group, members in zip(parts or [""], whole, strict=True):
            weights = [coefficients[f"{name}/{group}" if group else name] for name in names]
            cut = [[{k: one[k] for k in members} for one in rows] for rows in (experts, fishers)]
            expected = FisherMerge(favor_target=False).merge(base, cut[0], weights, cut[1])
            assert_same({k: found[k] for k in members}, expected, rtol=0, atol=0)
    assert len(asked) == 3 * len(whole) and len(storages) == 1


def test_the_merge_that_was_assembled_last_is_not_computed_again():
    base, experts, fishers = models()
    passes = []

    def fisher_of(name, body):
        passes.append(name)
        return fishers["abc".index(name)]

    assembler = Assembler(DFMerge(), base, dict(zip("abc", experts, strict=True)), fisher_of)
    first, second = ({"a": 0.3, "b": 0.2, "c": one} for one in (0.1, 0.9))
    assembler.assemble(first)
    kept = {name: one.clone() for name, one in assembler.assemble(dict(first)).items()}
    assert len(passes) == 3
    assert not torch.equal(assembler.assemble(second)[f"around {SIZE}"], kept[f"around {SIZE}"])
    assert_same(assembler.assemble(first), kept, rtol=0, atol=0)
    assert len(passes) == 9


def test_a_merge_that_failed_is_not_kept():
    base, experts, _ = models()
    assembler = Assembler(Isotropic(), base, dict(zip("abc", experts, strict=True)), None)
    whole = {"a": 0.5, "b": 0.5, "c": 0.0}
    assembler.assemble(whole)
    for _ in range(2):
        with pytest.raises(ValueError, match="positive sum"):
            assembler.assemble(dict.fromkeys("abc", 0.0))
    expected = Isotropic().merge(None, experts, [0.5, 0.5, 0.0])
    assert_same(assembler.assemble(whole), expected)
