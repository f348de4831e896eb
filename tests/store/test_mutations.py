"""Thousands of damaged files: each is read or refused, within bounded time and memory."""

import json
import multiprocessing
import resource
import shutil
import signal
import time
from pathlib import Path

import h5py
import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fmerge.errors import UserError
from fmerge.store import (
    RunFolder,
    hdf5_layout,
    load_classifier,
    load_lightning,
    read_fisher,
    write_fisher,
)
from fmerge.store.fisher_files import read_layout
from fmerge.store.folders import check_folder, check_weights, read_object
from tests import tiny

PROVENANCE = {"model": "x", "model_sha256": "ab", "task": "colour", "examples": 3}
FEW = settings(
    max_examples=1,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def many(examples):
    return settings(FEW, max_examples=examples)


@st.composite
def changes(draw):
    """A list of edits of a file: where, as a fraction of it, what kind, and with what."""
    kinds = st.sampled_from(["flip", "set", "cut", "insert", "delete", "digit", "zero", "ones"])
    # most of the meaning is at the front
    place = st.one_of(st.floats(0, 1), st.floats(0, 0.1))
    return draw(st.lists(st.tuples(kinds, place, st.integers(0, 255)), min_size=1, max_size=4))


def mutate(content: bytes, edits) -> bytes:
    changed = bytearray(content)
    for kind, place, value in edits:
        if not changed:
            break
        at = min(int(place * len(changed)), len(changed) - 1)
        if kind == "flip":
            changed[at] ^= 1 << value % 8
        elif kind == "set":
            changed[at] = value
        elif kind == "cut":
            del changed[at:]
        elif kind == "insert":
            changed[at:at] = bytes([value]) * (1 + value % 9)
        elif kind == "delete":
            del changed[at : at + 1 + value % 9]
        elif kind == "digit":  # numbers in headers: shapes, offsets, counts
            digits = [i for i in range(at, min(at + 400, len(changed))) if 48 <= changed[i] < 58]
            if digits:
                changed[digits[value % len(digits)]] = 48 + value % 10
        else:
            changed[at : at + 8] = bytes([0 if kind == "zero" else 255]) * 8
    return bytes(changed)


def read_or_refuse(read, *args):
    """Whether it was read; anything but a UserError of one line fails."""
    start = time.monotonic()
    try:
        read(*args)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        return False
    finally:
        assert time.monotonic() - start < 100
    return True


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One sound file of each kind, as bytes."""
    folder = tmp_path_factory.mktemp("sound")
    values = {"bert.a.weight": torch.rand(6, 5), "bert.b.bias": torch.rand(7)}
    write_fisher(folder / "f.safetensors", values, PROVENANCE)
    write_fisher(folder / "f.h5", values, PROVENANCE)
    state = {"state_dict": values, "hyper_parameters": {"path": "x", "tasks": {"a": ["b"]}}}
    torch.save(state, folder / "c.ckpt")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_safetensors_fishers(sound, tmp_path, record_property):
    counts = [0, 0]

    @many(1500)
    @given(changes())
    def check(edits):
        path = tmp_path / "f.safetensors"
        path.write_bytes(mutate(sound[".safetensors"], edits))
        counts[read_or_refuse(read_fisher, path)] += 1

    check()
    record_property("figure", f"mutated safetensors: {counts[0]} refused, {counts[1]} read")
    assert counts[0] > 500


def test_lightning_checkpoints(sound, tmp_path, record_property):
    counts = [0, 0]

    @many(500)
    @given(changes())
    def check(edits):
        path = tmp_path / "c.ckpt"
        path.write_bytes(mutate(sound[".ckpt"], edits))
        counts[read_or_refuse(load_lightning, path)] += 1

    check()
    record_property("figure", f"mutated .ckpt: {counts[0]} refused, {counts[1]} read")
    assert counts[0] > 100


def in_child(target, *args) -> int:
    """Runs in a forked process, since a crash inside of a C library takes its process along."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode


def read_many_h5(content, folder: Path, start: int, examples: int):
    """Reads files of these seeds as the process for it does; writes what came of each."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    log = (folder / "log").open("a")
    for seed in range(start, start + examples):
        generator = numpy.random.default_rng(seed)
        kinds = ["flip", "set", "cut", "insert", "delete", "zero", "ones"]
        edits = [
            (generator.choice(kinds), generator.random() ** 2, int(generator.integers(256)))
            for _ in range(generator.integers(1, 4))
        ]
        path = folder / f"{seed}.h5"
        path.write_bytes(mutate(content, edits))
        log.write(f"{seed} ")
        log.flush()
        signal.alarm(2)  # ends this process, as its limit of processor time would
        try:
            found = hdf5_layout.layout(path, "fmerge.fisher")
        except Exception:  # whatever h5py raises becomes one line
            log.write("0\n")
        else:
            signal.alarm(0)
            claimed = json.loads(json.dumps(found))["tensors"]
            assert all(tensor.numel() < 1000 for tensor in read_layout(path, claimed).values())
            log.write("1\n")
        signal.alarm(0)
        log.flush()
        path.unlink()


@pytest.mark.slow
def test_hdf5_fishers(sound, tmp_path, record_property):
    seed, end, died = 0, 1000, []
    while seed < end:
        code = in_child(read_many_h5, sound[".h5"], tmp_path, seed, end - seed)
        last = (tmp_path / "log").read_text().splitlines()[-1].split()
        assert code <= 0, f"seed {last[0]}"
        if code < 0:
            died.append(tmp_path / f"{last[0]}.h5")
            with (tmp_path / "log").open("a") as log:
                log.write(f"died of {-code}\n")
        seed = int(last[0]) + 1
    results = [line.split(maxsplit=1)[1] for line in (tmp_path / "log").read_text().splitlines()]
    counts = {one: results.count(one) for one in sorted(set(results))}
    record_property("figure", f"mutated HDF5, refused (0), read (1): {counts}")
    assert counts["0"] > 200 and len(results) == end
    # libhdf5 itself may crash or loop: in a process of its own, which is one line here
    for path in died[:1]:
        assert not read_or_refuse(read_fisher, path)


@pytest.mark.slow
def test_folders(zoo, tmp_path, record_property):
    """Index, config and weights of a folder, read as far as before transformers gets them."""
    folder, counts = tmp_path / "expert", [0, 0]
    shutil.copytree(zoo.experts["colour"], folder)
    model = load_classifier(str(folder), "colour")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    names = ["config.json", "tokenizer_config.json", "model.safetensors.index.json"]
    sound = {name: (folder / name).read_bytes() for name in names}

    def read():
        check_folder(folder)
        check_weights(folder, read_object(folder / "config.json"))

    @many(900)
    @given(st.sampled_from(names), changes())
    def check(name, edits):
        (folder / name).write_bytes(mutate(sound[name], edits))
        counts[read_or_refuse(read)] += 1
        (folder / name).write_bytes(sound[name])

    read()
    check()
    record_property("figure", f"mutated JSON: {counts[0]} refused, {counts[1]} read")
    assert counts[0] > 200


def test_whole_models(zoo, tmp_path, record_property):
    """Config and weights, read to the end by transformers."""
    folder, counts = tmp_path / "expert", [0, 0]
    shutil.copytree(zoo.experts["colour"], folder)
    names = ["config.json", "config.json", "model.safetensors"]
    sound = {name: (folder / name).read_bytes() for name in names}

    @many(150)
    @given(st.sampled_from(names), changes())
    def check(name, edits):
        (folder / name).write_bytes(mutate(sound[name], edits))
        counts[read_or_refuse(load_classifier, str(folder), "colour", tiny.LABELS["colour"])] += 1
        (folder / name).write_bytes(sound[name])

    check()
    record_property("figure", f"mutated models: {counts[0]} refused, {counts[1]} read")
    assert counts[0] > 50


@pytest.mark.slow
def test_the_state_of_a_run(tmp_path, record_property):
    counts = [0, 0]
    config = "experts:\n  a: x\n  b: y\nmethod:\n  class_path: Average\noutput: z\n"
    inputs = {"expert": {"a": "12", "b": "34"}, "base": None, "data": {}}
    record = {"trial": 0, "status": "ok", "objective": 0.5, "coefficients": {"a": 0.5, "b": 1.0},
              "metrics": {"a": 0.5}}  # fmt: skip
    log = "".join(json.dumps(record | {"trial": i}) + "\n" for i in range(3))
    sound = {"config.yaml": config, "inputs.json": json.dumps(inputs), "trials.jsonl": log}

    def resume():
        folder = RunFolder(tmp_path, config)
        if folder.check(overwrite=False):
            folder.resume(inputs)

    @many(600)
    @given(st.sampled_from(sorted(sound)), changes())
    def check(name, edits):
        for one, content in sound.items():
            (tmp_path / one).write_text(content)
        (tmp_path / name).write_bytes(mutate(sound[name].encode(), edits))
        counts[read_or_refuse(resume)] += 1

    check()
    record_property("figure", f"mutated run folders: {counts[0]} refused, {counts[1]} gone on with")
    assert counts[0] > 200


def test_a_file_of_another_format_under_each_name(sound, tmp_path):
    for content in (*sound.values(), b"", b"\0" * 4096, b"PK\x03\x04" + b"\xff" * 64):
        for name, read in (
            ("f.safetensors", read_fisher),
            ("f.h5", read_fisher),
            ("c.ckpt", load_lightning),
            ("c.json", read_object),
        ):
            suffix = "." + name.partition(".")[2]
            if sound.get(suffix) != content:
                (tmp_path / name).write_bytes(content)
                assert not read_or_refuse(read, tmp_path / name)


def test_claims_are_held_against_the_size_of_the_file(tmp_path):
    """Reading a file of a few bytes that claims a terabyte takes no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    header = {"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    path = tmp_path / "f.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert not read_or_refuse(read_fisher, path)
    save_file({"w": torch.ones(1)}, path)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs["fmerge.fisher"] = "{}"
        file.create_dataset("w", shape=(2**38,), dtype="f4")  # never written: nothing stored
    assert not read_or_refuse(read_fisher, tmp_path / "f.h5")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
