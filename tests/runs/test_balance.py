"""The weights that balance the experts' statistics, worked by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from fmerge.merging.assembler import Assembler
from fmerge.methods import FisherMerge, Gram, Isotropic, RegMean
from fmerge.runs.balance import balanced_weights, with_balance
from fmerge.search import SearchSpace

EXPERTS = {
    name: {"u": torch.ones(2), "w": torch.ones(1, 2), "v": torch.ones(1)} for name in ("a", "b")
}
FISHERS = {
    "a": {"u": torch.tensor([1.0, 3.0]), "w": torch.tensor([[2.0, 1.0]]), "v": torch.ones(1)},
    "b": {"u": torch.tensor([3.0, 1.0]), "w": torch.tensor([[6.0, 1.0]]), "v": torch.ones(1)},
}
GROUPS = {"w": ["w"], "rest": ["u", "v"]}


def made(method, statistics, parts=None):
    return Assembler(method, None, EXPERTS, lambda *_: None, statistics, parts=parts)


def weights(method, statistics, groups=None):
    options = {} if groups is None else {"groups": groups}
    space = SearchSpace(["a", "b"], scale_invariant=True, **options)
    return balanced_weights(space, made(method, statistics, groups))


def test_weights_are_the_inverse_of_the_mean_fisher():
    # means 8/5 and 12/5
    assert weights(FisherMerge(normalize=False), FISHERS) == pytest.approx({"a": 1.0, "b": 2 / 3})
    # λ is divided by the norms, 4 and √48: they are 4/1.6 and √48/2.4
    found = weights(FisherMerge(), FISHERS)
    assert found == pytest.approx({"a": 2.5 * 2.4 / math.sqrt(48), "b": 1.0})


def test_each_group_is_balanced_by_itself():
    found = weights(FisherMerge(normalize=False), FISHERS, GROUPS)
    assert found == pytest.approx({"a/w": 1.0, "a/rest": 1.0, "b/w": 3 / 7, "b/rest": 1.0})


def test_grams_count_by_their_diagonals_and_what_is_unknown_is_equal():
    grams = {
        "a": {"w": Gram(torch.tensor([[2.0, 9.0], [9.0, 4.0]]))},
        "b": {"w": Gram(torch.tensor([[1.0, 9.0], [9.0, 1.0]]))},
    }
    found = weights(RegMean(), grams, GROUPS)
    assert found == pytest.approx({"a/w": 1 / 3, "a/rest": 1.0, "b/w": 1.0, "b/rest": 1.0})
    zero = {"a": {name: 0 * one for name, one in FISHERS["a"].items()}, "b": FISHERS["b"]}
    assert weights(FisherMerge(normalize=False), zero) == {"a": 1.0, "b": 1.0}


class Folder(dict):
    """Notes in memory."""

    noted, note = dict.get, dict.__setitem__


def test_a_resumed_run_has_the_weights_of_the_first():
    trainer = SimpleNamespace(
        is_global_zero=True, strategy=SimpleNamespace(broadcast=lambda own: own)
    )
    space, folder = SearchSpace(["a", "b"], scale_invariant=True), Folder()
    method = FisherMerge(normalize=False)
    first = with_balance(space, made(method, FISHERS), trainer, folder)
    assert first.balanced == pytest.approx({"a": 1.0, "b": 2 / 3})
    other = {"a": FISHERS["b"], "b": FISHERS["a"]}  # as rounded by another machine
    assert with_balance(space, made(method, other), trainer, folder) == first
    # nothing to balance
    assert with_balance(space, made(Isotropic(), None), trainer, Folder()) is space
    plain = SearchSpace(["a", "b"])
    assert with_balance(plain, made(method, FISHERS), trainer, Folder()) is plain
