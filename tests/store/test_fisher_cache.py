"""Where the Fishers of curves are cached, and that it makes no difference."""

import os

import pytest
import torch

from fmerge.errors import UserError
from fmerge.merging.assembler import Assembler
from fmerge.methods import DFMerge
from fmerge.store import FisherCache, RunFolder, fisher_cache
from fmerge.system.memory import Memory
from tests.compare import assert_same

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PLENTY, SHORT = (800, 1000), (250, 1000)  # bytes free and in all


@pytest.mark.parametrize(
    ("device", "size", "main", "own", "expected"),
    [
        (CPU, 600, PLENTY, None, "cpu"),  # a fifth, 200, stays free
        (CPU, 601, PLENTY, None, "disk"),
        (CPU, 50, SHORT, None, "cpu"),
        (CPU, 51, SHORT, None, "disk"),
        (GPU, 50, SHORT, SHORT, "device"),
        (GPU, 600, PLENTY, SHORT, "cpu"),
        (GPU, 601, PLENTY, SHORT, "disk"),
    ],
)
def test_a_set_goes_to_the_first_place_with_room(monkeypatch, device, size, main, own, expected):
    free = {CPU: Memory(*main), GPU: own and Memory(*own)}
    monkeypatch.setattr(fisher_cache, "free_memory", free.__getitem__)
    assert FisherCache("unused", device).place(size) == expected


def test_where_the_system_does_not_say_a_set_goes_to_the_disk(monkeypatch):
    monkeypatch.setattr(fisher_cache, "free_memory", lambda device: None)
    assert FisherCache("unused", CPU).place(1) == "disk"


def merges(folder):
    """Merges along curves whose Fishers are of odd sizes, a strided and a 0-d tensor."""
    shapes = {"w": (37, 11), "b": (11,), "s": ()}
    generator = torch.Generator().manual_seed(0)
    base, *experts = (
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(3)
    )

    def fisher_of(name, body):
        turned = {key: one.square() + (key == "b") for key, one in body.items()}
        return turned | {"w": turned["w"].T.contiguous().T}

    keep = FisherCache(folder, CPU).put
    assembler = Assembler(
        DFMerge(normalize=True, damping=0.1), base, dict(zip("ab", experts, strict=True)),
        fisher_of, curve_nodes=3, keep=keep,
    )  # fmt: skip
    for coefficients in ({"a": 0.3, "b": 0.9}, {"a": 0.5, "b": 0.0}, {"a": 1.0, "b": 0.77}):
        yield {name: one.clone() for name, one in assembler.assemble(coefficients).items()}


def test_disk_and_memory_give_the_same_merges_and_leave_no_file(monkeypatch, tmp_path):
    files = []
    save = fisher_cache.save_file
    monkeypatch.setattr(
        fisher_cache, "save_file", lambda *args: (files.append(args[1]), save(*args))
    )
    monkeypatch.setattr(fisher_cache, "free_memory", lambda device: Memory(10**12, 10**12))
    expected = list(merges(tmp_path / "run"))
    assert not files
    monkeypatch.setattr(fisher_cache, "free_memory", lambda device: Memory(0, 10**12))
    for one, other in zip(merges(tmp_path / "run"), expected, strict=True):
        assert_same(one, other, rtol=0, atol=0)
        assert os.listdir(tmp_path / "run") == []
    assert len(files) == len(set(files)) == 6  # three nodes of each of two tasks


def test_a_disk_that_refuses_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(fisher_cache, "free_memory", lambda device: Memory(0, 10**12))

    def full(tensors, name):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fisher_cache, "save_file", full)
    with pytest.raises(UserError, match=r"fisher_curve.safetensors: cannot be written, .* full"):
        FisherCache(tmp_path, CPU).put({"w": torch.ones(3)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("begin", [RunFolder.start, RunFolder.resume])
def test_what_a_kill_left_is_removed_when_a_run_begins(monkeypatch, tmp_path, begin):
    RunFolder(tmp_path).start({})
    names = []

    def killed(tensors, name):
        names.append(name)
        with open(name, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fisher_cache, "free_memory", lambda device: Memory(0, 10**12))
        patch.setattr(fisher_cache, "save_file", killed)
        patch.setattr(fisher_cache.Path, "unlink", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            FisherCache(tmp_path, CPU).put({"w": torch.ones(3)})
    assert os.path.exists(names[0])
    begin(RunFolder(tmp_path), {})
    assert not os.path.exists(names[0])
