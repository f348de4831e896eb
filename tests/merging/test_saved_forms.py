"""Merged models have the dtype, the shards and the side files of their experts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fmerge.cli.app import main
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import Isotropic, TaskArithmetic
from fmerge.modules import TextClassifier
from fmerge.search import Fixed
from fmerge.store.params_file import load_params
from fmerge.store.run_config import first_difference
from fmerge.trainer import FMergeTrainer
from tests import tiny
from tests.cli.run import data_config, fails

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
NAMES = ("colour", "animal")
SIDE = {"tokenizer.model": b"\x00pieces", "preprocessor_config.json": b'{"own": 1}',
        "chat_template.jinja": b"{{ messages }}", "LICENSE": b"free"}  # fmt: skip


def expert(zoo, name, folder, dtype, side=(), **options):
    model = AutoModelForSequenceClassification.from_pretrained(zoo.experts[name], dtype=dtype)
    model.save_pretrained(folder, **options)
    tiny.tokenizer().save_pretrained(folder)
    for one in side:
        (folder / one).write_bytes(SIDE[one])
    return str(folder)


@pytest.fixture(scope="module")
def halves(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("halves")
    return {name: expert(zoo, name, root / name, BF16) for name in NAMES}


def trainer(search=None, **options):
    return FMergeTrainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[MergeOptimizer(search)], enable_checkpointing=False, **options,
    )  # fmt: skip


def merge(output, experts, data=None, search=None, **options):
    options = {"baselines": "experts"} | options
    return trainer(search).merge(TextClassifier(), data, experts=experts, output=output, **options)


def stored(folder):
    return load_params(folder), json.loads((Path(folder) / "config.json").read_text())


def body(params):
    return {name: one for name, one in params.items() if name.startswith("bert.")}


def rounded_mean(paths, dtype):
    models = [body(load_params(path)) for path in paths]
    return {
        name: (sum(model[name].double() for model in models) / len(models)).to(dtype)
        for name in models[0]
    }


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_the_merge_has_the_experts_dtype_and_is_rounded_once(zoo, halves, tmp_path, dtype):
    paths = halves
    if dtype != BF16:
        paths = {name: expert(zoo, name, tmp_path / name, dtype) for name in NAMES}
    merge(tmp_path / "out", paths)
    mean = rounded_mean(paths.values(), dtype)
    for name in NAMES:
        found, config = stored(tmp_path / "out/merged" / name)
        assert {one.dtype for one in found.values()} == {dtype}
        assert config["dtype"] == str(dtype).removeprefix("torch.")
        for key, one in body(found).items():
            assert torch.equal(one, mean[key]), key
        head = load_params(paths[name])["classifier.weight"]
        assert torch.equal(found["classifier.weight"], head)  # as it was, bit for bit


@pytest.mark.parametrize(("other", "expected"), [(F32, F32), (F16, F32), (BF16, BF16)])
def test_experts_of_two_dtypes_give_the_one_that_holds_both(zoo, halves, tmp_path, other, expected):
    paths = {"colour": halves["colour"], "animal": expert(zoo, "animal", tmp_path / "x", other)}
    merge(tmp_path / "out", paths)
    for name in NAMES:
        found, config = stored(tmp_path / "out/merged" / name)
        assert {one.dtype for one in found.values()} == {expected}
        assert config["dtype"] == str(expected).removeprefix("torch.")


def test_a_donor_counts_too(zoo, halves, tmp_path):
    donor = Expert(zoo.experts["animal"], donor=True)
    merge(tmp_path / "out", {"colour": halves["colour"], "animal": donor})
    assert {one.dtype for one in load_params(tmp_path / "out/merged").values()} == {F32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_of_ones_choice(zoo, tmp_path, dtype):
    merge(tmp_path / "out", zoo.experts, dtype=dtype)
    wanted = getattr(torch, dtype)
    whole = rounded_mean(zoo.experts.values(), F32)
    for name in NAMES:
        found, config = stored(tmp_path / "out/merged" / name)
        assert config["dtype"] == dtype
        for key, one in body(found).items():
            torch.testing.assert_close(
                one.float(), whole[key], rtol=2 * torch.finfo(wanted).eps, atol=1e-7
            )
            assert one.dtype == wanted
        head = load_params(zoo.experts[name])["classifier.weight"]
        assert torch.equal(found["classifier.weight"], head.to(wanted))


def test_bfloat16_experts_in_float32(halves, tmp_path):
    merge(tmp_path / "out", halves, dtype="float32")
    found = body(load_params(tmp_path / "out/merged/colour"))
    for key, one in rounded_mean(halves.values(), F32).items():
        assert torch.equal(found[key], one)


def test_a_dtype_that_cannot_hold_the_weights_is_refused(zoo, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(zoo.experts["animal"])
    with torch.no_grad():
        model.classifier.bias[0] = 1e6
    experts = zoo.experts | {"animal": tiny.save(model, tmp_path / "large")}
    with pytest.raises(
        UserError, match=r"--dtype: float16 holds .* tensor 'classifier.bias' of .*large"
    ):
        merge(tmp_path / "out", experts, dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_is_scored_is_what_is_saved(zoo, halves, tmp_path, dtype):
    tasks = {n: TextFiles(**zoo.tasks[n], labels=tiny.LABELS[n]) for n in NAMES}
    paths = halves if dtype is None else zoo.experts
    report = merge(
        tmp_path / "out", paths, MultiTask(tasks, 4), Fixed({"colour": 0.3, "animal": 0.9}),
        method=TaskArithmetic(), base=zoo.base, dtype=dtype, baselines="all",
    )  # fmt: skip
    own = report.tests.rows[-1].scores
    for name in NAMES:
        single = MultiTask({name: tasks[name]}, 4)
        module = TextClassifier(str(tmp_path / "out/merged" / name))
        (found,) = trainer().test(module, datamodule=single, verbose=False)
        assert own[name] == pytest.approx(found[f"{name}/accuracy"], abs=1e-6)


@pytest.mark.slow
def test_refitted_heads_have_the_dtype_too(zoo, halves, tmp_path):
    tasks = {n: TextFiles(**zoo.tasks[n], labels=tiny.LABELS[n]) for n in NAMES}
    merge(tmp_path / "out", halves, MultiTask(tasks, 4), refit_heads="end")
    assert {one.dtype for one in load_params(tmp_path / "out/merged/colour").values()} == {BF16}


def test_side_files_are_each_experts_own(zoo, tmp_path):
    paths = {
        "colour": expert(zoo, "colour", tmp_path / "colour", F32, SIDE),
        "animal": expert(zoo, "animal", tmp_path / "animal", F32, ["LICENSE"]),
    }
    (tmp_path / "animal" / "LICENSE").write_bytes(b"another")
    (tmp_path / "animal" / "trainer_state.json").write_text("{}")
    merge(tmp_path / "out", paths)
    for name, content in SIDE.items():
        assert (tmp_path / "out/merged/colour" / name).read_bytes() == content
    there = {path.name for path in (tmp_path / "out/merged/animal").iterdir()}
    assert (tmp_path / "out/merged/animal/LICENSE").read_bytes() == b"another"
    assert there.isdisjoint({"tokenizer.model", "preprocessor_config.json", "trainer_state.json"})


def shards(folder):
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {"model.safetensors": set(load_file(folder / "model.safetensors"))}
    found = {}
    for name, file in json.loads(index.read_text())["weight_map"].items():
        found.setdefault(file, set()).add(name)
    return found


def test_shards_are_those_of_each_expert(zoo, halves, tmp_path):
    paths = halves | {
        "animal": expert(zoo, "animal", tmp_path / "animal", BF16, max_shard_size=4_000)
    }
    merge(tmp_path / "out", paths)
    assert shards(tmp_path / "out/merged/animal") == shards(tmp_path / "animal")
    assert len(shards(tmp_path / "animal")) > 2
    assert list(shards(tmp_path / "out/merged/colour")) == ["model.safetensors"]


def test_the_command_line_and_a_run_in_another_dtype(halves, tmp_path, capsys):
    experts = [f"--experts.{name}={path}" for name, path in halves.items()]
    common = ["merge", *experts, "--trainer.accelerator", "cpu", "--output", tmp_path / "out"]
    main([str(one) for one in [*common, "--dtype", "float16", "--max_shard_size", "6KB"]])
    found, config = stored(tmp_path / "out/merged/colour")
    assert {one.dtype for one in found.values()} == {F16} and config["dtype"] == "float16"
    assert len(shards(tmp_path / "out/merged/colour")) > 1
    assert "dtype was float16 and is None" in fails(capsys, *common)


def test_another_size_of_shards_is_no_other_run():
    assert first_difference({"max_shard_size": "5GB"}, {}) == ""
    assert first_difference({"dtype": "float16"}, {}) == "dtype was float16 and is None"


def test_wrong_options_are_refused_before_models_are_read(tmp_path):
    absent = {"a": "absent", "b": "absent"}
    for option, wrong in (("max_shard_size", "much"), ("dtype", "fp8")):
        with pytest.raises(UserError, match=f"--{option}: is '{wrong}', but must be"):
            merge(tmp_path / "out", absent, **{option: wrong})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("32-true", F32), pytest.param("bf16-true", BF16, marks=pytest.mark.slow)],
)
def test_a_fit_saves_the_dtype_that_it_trained_in(zoo, tmp_path, precision, expected):
    # float32 from a bfloat16 base: a step is smaller than the rounding to bfloat16
    base = tmp_path / "base"
    expert(zoo, "colour", base, BF16, ["tokenizer.model"])
    data = data_config(zoo, tmp_path, "colour")
    main([str(one) for one in [
        "fit", "--config", data, "--model.path", base, "--output", tmp_path / "fit",
        "--trainer.max_epochs", "1", "--trainer.precision", precision,
    ]])  # fmt: skip
    found, config = stored(tmp_path / "fit/expert")
    assert {one.dtype for one in found.values()} == {expected}
    assert config["dtype"] == str(expected).removeprefix("torch.")
    assert (tmp_path / "fit/expert/tokenizer.model").read_bytes() == SIDE["tokenizer.model"]
    if expected == F32:
        weight = found["bert.pooler.dense.weight"]
        assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.slow
def test_experts_as_checkpoints_of_fits_and_pickles(zoo, halves, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(halves["animal"], dtype=BF16)
    pickled = tmp_path / "pickled"
    model.config.save_pretrained(pickled)
    tiny.tokenizer().save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    state = {f"models.colour.{k}": v for k, v in load_params(halves["colour"]).items()}
    made_with = {"path": halves["colour"], "tasks": {"colour": tiny.LABELS["colour"]}}
    torch.save({"state_dict": state, "hyper_parameters": made_with}, tmp_path / "best.ckpt")
    paths = {"colour": str(tmp_path / "best.ckpt"), "animal": str(pickled)}
    merge(tmp_path / "out", paths, method=Isotropic(), search=Fixed({"colour": 0.5, "animal": 0.5}))
    mean = rounded_mean([halves["colour"], halves["animal"]], BF16)
    for name in NAMES:
        found = body(load_params(tmp_path / "out/merged" / name))
        assert all(torch.equal(found[key], one) for key, one in mean.items())


def test_a_dry_run_counts_the_bytes_of_the_dtype(halves, tmp_path, capsys):
    merge(tmp_path / "out", halves, dry_run=True)
    size = sum(
        load_params(path)[key].numel() * 2 for path in halves.values() for key in load_params(path)
    )
    assert f"{size / 2**20:,.1f} MiB (2 merged models)" in capsys.readouterr().out
