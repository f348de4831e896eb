"""The fastest batch that fits is found, by a clock and a memory that are made up."""

from types import SimpleNamespace

import pytest
import torch

from fmerge.errors import UserError
from fmerge.evaluation import batch_size
from fmerge.evaluation.batch_size import (
    BatchSizes,
    check_automatic,
    find_batch_size,
    in_memory,
    is_out_of_memory,
)
from fmerge.system.watchdog import LostProcessError

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Machine:
    """A pass over n examples takes ``seconds(n)``, and memory for ``most`` of them."""

    def __init__(self, seconds, most):
        self.seconds, self.most, self.now, self.tried = seconds, most, 0.0, []

    def run(self, size):
        self.tried.append(size)
        if size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.now += self.seconds(size)

    def find(self, most):
        return find_batch_size(self.run, most, clock=lambda: self.now)


def test_the_largest_that_fits_is_found_while_larger_is_faster():
    assert Machine(lambda n: 1.0, most=100).find(4096) == 64
    assert Machine(lambda n: 1.0, most=64).find(4096) == 64
    assert Machine(lambda n: 1.0, most=10**9).find(100) == 64  # no more than there is
    assert Machine(lambda n: 1.0, most=0).find(100) == 1
    machine = Machine(lambda n: 1.0, most=63)
    assert machine.find(4096) == 32 and machine.tried[-1] == 64  # each was tried


def test_no_memory_is_spent_where_larger_is_no_faster():
    saturated = Machine(lambda n: max(1.0, n / 8), most=10**9)
    assert saturated.find(4096) == 8 and max(saturated.tried) == 32
    # a busy moment at one size is not the end
    hiccup = Machine(lambda n: 9.0 if n == 4 else 1.0, most=10**9)
    assert hiccup.find(64) == 64


def test_other_errors_of_a_trial_pass():
    def fail(size):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        find_batch_size(fail, 8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8"), True),
        (RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("a bug"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_bugs(error, expected):
    assert is_out_of_memory(error) is expected


def trainer(processes=1):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(world_size=processes, global_rank=1, strategy=strategy)


def data(size=16, automatic=False, examples=50):
    task = SimpleNamespace(examples=lambda split: range(examples))
    return SimpleNamespace(batch_size=size, automatic=automatic, tasks={"a": task})


def limited(data, most, sizes):
    def run():
        sizes.append(data.batch_size)
        if data.batch_size > most:
            raise FULL
        return "done"

    return run


def test_a_pass_is_repeated_in_halves_until_it_fits(caplog):
    one, sizes = data(16), []
    assert in_memory(trainer(), one, limited(one, 5, sizes)) == "done"
    assert sizes == [16, 8, 4] and one.batch_size == 4
    assert "out of memory with batches of 16" in caplog.text
    assert "the pass is repeated with batches of 4" in caplog.text
    assert in_memory(trainer(), one, limited(one, 5, sizes)) == "done" and sizes[3:] == [4]


def test_one_example_that_does_not_fit_is_refused():
    one = data(2)
    with pytest.raises(UserError, match="out of memory with one example in a batch .CUDA out of"):
        in_memory(trainer(), one, limited(one, 0, []))


def test_one_of_several_processes_cannot_repeat_alone():
    one, sizes = data(16), []
    with pytest.raises(LostProcessError, match="process 1 is out of memory .*smaller --data.batch"):
        in_memory(trainer(processes=2), one, limited(one, 5, sizes))
    assert sizes == [16]


def test_each_kind_of_pass_has_a_size_of_its_own(monkeypatch):
    tried = []
    monkeypatch.setattr(batch_size, "longest", lambda data, tasks, size: ("trial", size))
    monkeypatch.setattr(
        batch_size, "find_batch_size", lambda run, most: (tried.append(most), run(3), 8)[2]
    )
    one = data(1, automatic=True)
    sizes, noted, passes = BatchSizes(trainer(), one), [], []
    sizes.note = lambda found: noted.append(dict(found))

    def whole(given):
        passes.append(given if given is not one else one.batch_size)
        if given is one and one.batch_size > 4 and len(passes) < 4:
            raise FULL
        return "done"

    before = torch.get_rng_state()
    assert sizes.make("scores", "validation", ["a"], whole) == "done"
    assert passes == [("trial", 3), 8, 4] and tried == [50]  # no more than there are examples
    assert sizes.make("Fisher", "train", ["a"], whole) == "done"
    assert sizes.make("scores", "validation", ["a"], whole) == "done"
    assert passes[3:] == [("trial", 3), 8, 4] and sizes.found == {"scores": 4, "Fisher": 8}
    assert noted == [{"scores": 8}, {"scores": 4}, {"scores": 4, "Fisher": 8}]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_size_that_was_given_is_taken():
    one, passes = data(16), []
    assert BatchSizes(trainer(), one).make("scores", "test", ["a"], passes.append) is None
    assert passes == [one]


@pytest.mark.parametrize(
    ("estimator", "errors", "processes", "message"),
    [
        ("rademacher", False, 1, "the signs of rademacher are drawn for whole batches"),
        ("exact", True, 1, "compare whole batches"),
        ("exact", False, 2, "2 processes cannot each try what fits"),
    ],
)
def test_an_automatic_size_is_refused_where_it_would_change_the_result(
    estimator, errors, processes, message
):
    check_automatic(trainer(), data(automatic=True), "exact", False)
    check_automatic(trainer(processes), data(), estimator, errors)
    with pytest.raises(UserError, match=f"is auto, but .*{message}.*; give a number"):
        check_automatic(trainer(processes), data(automatic=True), estimator, errors)
