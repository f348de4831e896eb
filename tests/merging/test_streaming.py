"""Merges tensor by tensor: bit for bit those in memory, whatever the method, the shards, a kill."""

import errno
import json
import os
import random
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import fmerge
from fmerge import load_params, methods
from fmerge.errors import UserError, classes_of
from fmerge.merging import stream_pass
from fmerge.merging import streaming as engine
from fmerge.merging.assembler import Assembler
from fmerge.merging.buffers import network_state
from fmerge.merging.compatibility import task_vector_facts
from fmerge.merging.distances import layer_distances
from fmerge.methods import FisherMerge, MergeMethod, TaskArithmetic
from fmerge.modules import RankChoice, TextClassifier
from fmerge.params import fingerprint
from fmerge.store import write_fisher
from tests import tiny
from tests.merging.streamed import in_memory, never, save, save_experts, streaming

METHODS = {
    name: one
    for name, one in classes_of(methods, MergeMethod).items()
    if one.streams and one.statistic in {None, "fisher"} or one is methods.LiNeS
}
MORE = {
    "TIES by tensor": methods.TIES(density=0.3, per_tensor=True),
    "Breadcrumbs, elected": methods.Breadcrumbs(election="ties"),
    "LiNeS of TIES": methods.LiNeS(methods.TIES()),
    "NuSLERP by rows": methods.NuSLERP(along="rows"),
}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Two experts and their base in bf16, in shards, with Fishers."""
    folder = tmp_path_factory.mktemp("llamas")
    base, experts = save_experts(folder, tiny.llama_config())
    fishers = {}
    for m, (name, path) in enumerate(experts.items()):
        model = RankChoice().read(path, name)
        torch.manual_seed(m)
        values = {key: torch.rand(one.shape) for key, one in model.named_parameters()}
        made = {"model_sha256": fingerprint(network_state(model)), "examples": 3, "split": "train"}
        write_fisher(fishers.setdefault(name, folder / f"{name}.safetensors"), values, made)
    return base, experts, fishers


def made(method):
    return method if isinstance(method, MergeMethod) else METHODS[method]()


@pytest.fixture(scope="module")
def both(llamas):
    """The models in memory, and in their files."""
    base, experts, fishers = llamas
    given = RankChoice(), experts, FisherMerge()
    whole = in_memory(*given, {"a": 0.7, "b": 0.4}, base, fishers).ensemble
    hashes = {name: fingerprint(network_state(one)) for name, one in whole.models.items()}
    return whole, hashes, streaming(*given, base, fishers)


@pytest.mark.parametrize("method", [*METHODS, *MORE.values()], ids=[*METHODS, *MORE])
def test_every_method_gives_the_bits_of_the_merge_in_memory(both, tmp_path, method):
    whole, hashes, planned = both
    method, weights = made(method), {"a": 0.7, "b": 0.4}
    based, statistics = method.needs_base, whole.fishers if method.statistic else None
    dtypes = planned.dtypes
    base = whole.base if based else None
    memory = Assembler(method, base, whole.bodies, lambda *_: {}, statistics, dtypes=dtypes)
    expected = memory.assemble(weights)
    ensemble = planned.ensemble
    if not based:
        ensemble = replace(ensemble, base=None, base_source=None)
    fishers = planned.fishers if method.statistic else {}
    planned = replace(planned, method=method, fishers=fishers, ensemble=ensemble)
    found = planned.merge(weights, tmp_path / "parts", never)
    written = {}
    for file in sorted((tmp_path / "parts" / "0").glob("*.safetensors")):
        written |= load_params(file)
    assert written.keys() == expected.keys() and len(planned.outputs[0].plan.sizes) > 3
    for name, tensor in expected.items():
        assert written[name].dtype == torch.bfloat16 and written[name].equal(tensor), name
    assert found.hashes["expert"] == hashes
    assert list(found.facts) == memory.facts(weights)
    if based:
        assert found.hashes["base"] == fingerprint(whole.base)
        assert found.vectors == task_vector_facts(whole.base, whole.bodies)
    expected = layer_distances(base, whole.bodies)
    assert list(found.distances.products) == list(expected.products)
    for layer in expected.products:
        for m, n in ((0, 0), (0, 1), (1, 1)):
            own = (one.apart(layer, m, n) for one in (found.distances, expected))
            assert next(own) == pytest.approx(next(own), rel=1e-4, abs=1e-6), layer


def test_a_fisher_in_bf16_and_one_of_another_model(llamas, tmp_path):
    _, experts, fishers = llamas
    halves = {}
    for name, file in fishers.items():
        values, provenance = fmerge.store.read_fisher(file)
        halves[name] = tmp_path / f"{name}.safetensors"
        write_fisher(halves[name], {k: v.bfloat16() for k, v in values.items()}, provenance)
    weights = {"a": 0.5, "b": 0.5}
    expected = in_memory(RankChoice(), experts, FisherMerge(), weights, fishers=halves).body
    planned = streaming(RankChoice(), experts, FisherMerge(), fishers=halves)
    planned.merge(weights, tmp_path / "parts", never)
    for file in (tmp_path / "parts" / "0").glob("*.safetensors"):
        assert all(one.equal(expected[name]) for name, one in load_params(file).items())
    swapped = {"a": fishers["b"], "b": fishers["a"]}
    planned = streaming(RankChoice(), experts, FisherMerge(), fishers=swapped)
    with pytest.raises(UserError, match="is the Fisher of another model"):
        planned.merge(weights, tmp_path / "other", never)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_another_dtype_rounds_once(llamas, tmp_path, dtype):
    _, experts, _ = llamas
    weights = {"a": 0.3, "b": 0.7}
    given = (RankChoice(), experts, methods.Isotropic())
    expected = in_memory(*given, weights, dtype=dtype).body
    streaming(*given, dtype=dtype).merge(weights, tmp_path / "parts", never)
    for file in (tmp_path / "parts" / "0").glob("*.safetensors"):
        for name, tensor in load_params(file).items():
            assert tensor.dtype == getattr(torch, dtype) and tensor.equal(expected[name])


def trainer():
    return fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {"config.yaml", "inputs.json", "times.txt"}
    }


@pytest.mark.parametrize(
    "kind", ["bert", *(pytest.param(one, marks=pytest.mark.slow) for one in ("t5", "bart"))]
)
def test_the_whole_folder_is_that_of_the_merge_in_memory(zoo, tmp_path, monkeypatch, kind):
    """Weights, index, config, tokenizer, side files, cards, trials and report."""
    monkeypatch.setattr("fmerge.report.reproduction.duration", lambda _: "a while")
    module, base, experts = TextClassifier, zoo.base, zoo.experts
    if kind != "bert":
        config = tiny.t5_config() if kind == "t5" else tiny.bart_config()
        module = RankChoice
        base, experts = save_experts(tmp_path, config)
        (tmp_path / "a" / "LICENSE").write_text("free")
    for number, streams in enumerate([True, False]):
        options = {} if streams else {"may_stream": lambda *_: False}
        for name, one in options.items():
            monkeypatch.setattr(f"fmerge.runs.job.{name}", one)
        trainer().merge(
            module(), experts=experts, base=base, method=TaskArithmetic(),
            output=tmp_path / str(number), baselines="experts",
        )  # fmt: skip
    first, second = (contents(tmp_path / str(number)) for number in range(2))
    assert first.keys() == second.keys() and len(first) > 6
    assert [name for name in first if first[name] != second[name]] == []
    kept = [json.loads((tmp_path / n / "inputs.json").read_text()) for n in "01"]
    assert kept[0]["expert"] == kept[1]["expert"] and kept[0]["base"] == kept[1]["base"]


def test_an_interrupted_merge_goes_on_where_it_was(llamas, tmp_path, monkeypatch):
    base, experts, _ = llamas
    planned = streaming(RankChoice(), experts, TaskArithmetic(), base)
    weights = {"a": 0.7, "b": 0.4}
    planned.merge(weights, tmp_path / "whole", never)
    monkeypatch.setattr(stream_pass, "_SYNCED", 0)
    names, merged = [], stream_pass.Pass._finite

    def counted(self, name, tensor):
        if len(names) in {3, 7, 8, 13}:
            names.append("killed")
            raise KeyboardInterrupt
        names.append(name)
        return merged(self, name, tensor)

    monkeypatch.setattr(stream_pass.Pass, "_finite", counted)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            planned.merge(weights, tmp_path / "parts", never)
        with (tmp_path / "parts" / "progress.jsonl").open("a") as file:
            file.write('["half a li')
    found = planned.merge(weights, tmp_path / "parts", never)
    counts = [names.count(name) for name in set(names) - {"killed"}]
    assert max(counts) <= 2 and counts.count(2) <= 4 and len(counts) == 21
    assert contents(tmp_path / "parts" / "0") == contents(tmp_path / "whole" / "0")
    assert found == planned.merge(weights, tmp_path / "once more", never)
    # with other coefficients nothing of it is used
    planned.merge({"a": 0.1, "b": 0.2}, tmp_path / "parts", never)
    assert contents(tmp_path / "parts" / "0") != contents(tmp_path / "whole" / "0")


def test_a_signal_ends_it_between_tensors(llamas, tmp_path):
    base, experts, _ = llamas
    calls = iter([0, 0, 15])
    planned = streaming(RankChoice(), experts, TaskArithmetic(), base)
    with pytest.raises(SystemExit, match="143"):
        planned.merge({"a": 0.7, "b": 0.4}, tmp_path / "parts", lambda: next(calls))
    planned.merge({"a": 0.7, "b": 0.4}, tmp_path / "parts", never)


def test_numbers_that_cannot_be_merged_leave_nothing_behind(tmp_path):
    base, experts = save_experts(tmp_path, tiny.llama_config())
    with torch.no_grad():
        model = RankChoice().read(experts["b"], "b")
        model.model.layers[1].mlp.up_proj.weight[2, 3] = float("nan")
        experts["nan"] = save(model.bfloat16(), tmp_path / "nan")
        experts["far"] = save(tiny.language_model(tiny.llama_config(), 99), tmp_path / "far")
    for wrong, text in {
        "nan": r"nan: tensor 'model.layers.1.mlp.up_proj.weight' holds 1 NaN",
        "far": r"far: lies 1\.\d+ times the norm of the base .* as far as an unrelated model",
    }.items():
        pair = {"a": experts["a"], wrong: experts[wrong]}
        with pytest.raises(UserError, match=text):
            trainer().merge(
                RankChoice(), experts=pair, base=base, method=TaskArithmetic(),
                output=tmp_path / wrong / "out",
            )  # fmt: skip
        assert not (tmp_path / wrong / "out").exists()


def test_a_refused_merge_leaves_the_run_that_it_was_to_replace(tmp_path):
    base, experts = save_experts(tmp_path, tiny.llama_config())
    with torch.no_grad():
        model = RankChoice().read(experts["b"], "b")
        model.model.norm.weight[3] = float("nan")
        save(model.bfloat16(), tmp_path / "b")
    output = tmp_path / "out"
    for name in ("merged/a/model.safetensors", "report.md", "config.yaml", "trials.jsonl"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("of the earlier run")
    before = contents(output)
    with pytest.raises(UserError, match="norm.weight' holds 1 NaN"):
        trainer().merge(
            RankChoice(), experts=experts, base=base, method=TaskArithmetic(), output=output,
            overwrite=True,
        )  # fmt: skip
    assert contents(output) == before


def test_too_little_disk_is_told_before_anything_is_written(llamas, tmp_path, monkeypatch):
    base, experts, _ = llamas
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(engine.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="the merged models take 0.0 GB, but the disk has 0.0 GB"):
        trainer().merge(
            RankChoice(), experts=experts, base=base, method=TaskArithmetic(),
            output=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_and_the_merge_goes_on(llamas, tmp_path, monkeypatch):
    """As where room cannot be kept: copies on write, quotas, or another's files at the start."""
    base, experts, _ = llamas
    written, write, take = [], os.pwrite, os.posix_fallocate
    monkeypatch.setattr(stream_pass, "_SYNCED", 0)  # notes every tensor

    def merge(output):
        trainer().merge(
            RankChoice(), experts=experts, base=base, method=TaskArithmetic(),
            coefficients={"a": 0.7, "b": 0.4}, output=tmp_path / output,
        )  # fmt: skip
        files = sorted((tmp_path / output / "merged").rglob("*.safetensors"))
        return {one.name: one.read_bytes() for one in files}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def filling(*given):
        written.append(given)
        return write(*given) if len(written) < whole // 2 else full()

    monkeypatch.setattr(os, "pwrite", lambda *given: written.append(given) or write(*given))
    expected, whole = merge("whole"), len(written)
    for name, one in (("posix_fallocate", full), ("pwrite", filling)):
        written.clear()
        monkeypatch.setattr(os, name, one)
        with pytest.raises(UserError, match="cannot be written, as the disk is full; free space"):
            merge("out")
        assert not (tmp_path / "out" / "merged").exists()
        monkeypatch.setattr(os, "posix_fallocate", take)
    written.clear()
    monkeypatch.setattr(os, "pwrite", lambda *given: written.append(given) or write(*given))
    assert merge("out") == expected
    assert len(written) < whole  # what was on the disk was not merged again


def broken(folder, how):
    """Damages the folder of an expert; returns what the message is to say."""
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    last = sorted(set(content["weight_map"].values()))[-1]
    if how == "missing":
        (folder / last).unlink()
        return "which is missing"
    if how == "truncated":
        whole = (folder / last).read_bytes()
        (folder / last).write_bytes(whole[:-1])
        return "not a readable safetensors file"
    if how == "twice":
        (folder / f"again-{last}").write_bytes((folder / last).read_bytes())
        content["weight_map"]["extra"] = f"again-{last}"
    if how == "nowhere":
        content["weight_map"]["model.layers.7.mlp.up_proj.weight"] = last
    if how == "shape":
        tensors = load_params(folder / last)
        name = min(tensors)
        save_file({**tensors, name: tensors[name][..., :-1].contiguous()}, folder / last)
    index.write_text(json.dumps(content))
    found = {"twice": "a shard is listed twice", "nowhere": "which does not hold it"}
    return found.get(how, r"is \(\d+.*\) where its config says")


@pytest.mark.parametrize("how", ["missing", "truncated", "twice", "nowhere", "shape"])
def test_damaged_shards_are_refused_before_anything_is_written(llamas, tmp_path, how):
    base, experts, _ = llamas
    shutil.copytree(experts["b"], tmp_path / "b")
    text = broken(tmp_path / "b", how)
    with pytest.raises(UserError, match=text):
        streaming(RankChoice(), {**experts, "b": str(tmp_path / "b")}, TaskArithmetic(), base)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of a fork beside threads
def test_thirty_kills_give_the_same_bytes(llamas, tmp_path, monkeypatch):
    """Each in the middle of a tensor, wherever the merge has come to; nothing is cleaned up."""
    base, experts, _ = llamas
    planned = streaming(RankChoice(), experts, TaskArithmetic(), base)
    weights, parts = {"a": 0.7, "b": 0.4}, tmp_path / "parts"
    planned.merge(weights, tmp_path / "whole", never)
    monkeypatch.setattr(stream_pass, "_SYNCED", 0)
    kills, ends, chance = 0, 0, random.Random(0)
    while kills < 30 or ends == 0:
        last, write = chance.randint(1, 6), os.pwrite

        def half(file, data, offset, last=last, write=write, calls=[]):  # noqa: B006
            calls.append(offset)
            if len(calls) >= last + 6:  # the headers of the shards come first
                write(file, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return write(file, data, offset)

        child = os.fork()
        if not child:
            os.pwrite = half
            planned.merge(weights, parts, never)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
            continue
        assert contents(parts / "0") == contents(tmp_path / "whole" / "0")
        shutil.rmtree(parts)
        ends += 1
    assert kills >= 30 and ends >= 1
