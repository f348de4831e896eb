"""A dry run makes the checks that headers allow, times a batch and writes nothing."""

import json
import multiprocessing
import resource
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmerge.cli.app import main
from fmerge.data import MultiTask
from fmerge.merging import experts as experts_module
from fmerge.runs import fisher as fisher_run
from fmerge.runs import timing as measured
from fmerge.runs.dry_run import total_seconds
from fmerge.store import write_fisher
from fmerge.system.memory import Memory
from tests.cli.run import data_config, experts, fails
from tests.cli.test_fisher_pass import Own, text_to_text


def run(*args):
    main([str(arg) for arg in args])


@pytest.fixture
def idle(monkeypatch):
    """No number of an input may be looked at."""

    def fail(*args):
        raise AssertionError("a dry run read values")

    for module in (experts_module, fisher_run):
        for name in ("check_finite", "fingerprint", "check_related", "read_fisher"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fail)


def merge(zoo, folder, *options):
    return [
        *["merge", "--config", data_config(zoo, folder), *experts(zoo), "--base", zoo.base],
        *["--output", folder / "runs" / "out", "--method", "DFMerge", "--dry_run", "true"],
        *["--optimizer.search", "Dirichlet", "--optimizer.search.draws", "7", *options],
    ]


def test_a_merge_is_only_described(zoo, tmp_path, capsys, idle):
    run(*merge(zoo, tmp_path))
    printed = capsys.readouterr().out
    for part in (
        *("Dry run", "expert colour", "expert animal", "DFMerge", "Dirichlet, 7 trials"),
        *("13 validation examples, 11 test examples", "(5 bodies)", "(2 merged models)"),
    ):
        assert part in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_dry_run_of_a_run_that_would_go_on_changes_nothing(zoo, tmp_path, capsys):
    output = tmp_path / "runs" / "out"
    run(*merge(zoo, tmp_path, "--method", "Isotropic", "--dry_run", "false"))
    (output / "report.md").unlink()
    before = {one: one.stat().st_mtime_ns for one in output.rglob("*")}
    run(*merge(zoo, tmp_path, "--method", "Isotropic"))
    assert "7 trials, after those that the output folder has" in capsys.readouterr().out
    assert before == {one: one.stat().st_mtime_ns for one in output.rglob("*")}
    run(*merge(zoo, tmp_path, "--method", "Isotropic", "--dry_run", "false"))
    # those of the search and the plain average
    assert "Resuming after 8 trials" in capsys.readouterr().out


def test_a_fisher_is_only_described(zoo, tmp_path, capsys, idle):
    config = ["--config", data_config(zoo, tmp_path, "colour"), "--output", tmp_path / "x.h5"]
    fisher = ["fisher", *config, "--expert", zoo.experts["colour"], "--dry_run", "true"]
    run(*fisher, "--examples", "9")
    printed = capsys.readouterr().out
    assert "9 of 20 in train" in printed and "0.0 MiB" in printed
    assert not (tmp_path / "x.h5").exists() and not list(tmp_path.glob(".*"))
    assert "holds no config.json" in fails(capsys, *fisher, "--expert", tmp_path)


def test_its_checks_are_those_of_a_run(zoo, tmp_path, capsys, idle):
    line = fails(capsys, *merge(zoo, tmp_path, f"--experts.colour={tmp_path / 'absent'}"))
    assert "absent: no such file or folder" in line
    assert "has no coefficients to search" in fails(
        capsys, *merge(zoo, tmp_path, "--method", "Average")
    )
    assert not (tmp_path / "runs").exists()


def copied(source, folder, **changes):
    """A copy of a model's folder whose weights are changed."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | changes, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_numbers_are_left_to_the_run_and_shapes_are_not(zoo, tmp_path, capsys):
    source = Path(zoo.experts["colour"])
    name, weight = next(iter(load_file(source / "model.safetensors").items()))
    bad = copied(source, tmp_path / "bad", **{name: torch.full_like(weight, torch.nan)})
    config = ["--config", data_config(zoo, tmp_path, "colour"), "--output", tmp_path / "x.h5"]
    run("fisher", *config, "--expert", bad, "--dry_run", "true")
    run(*merge(zoo, tmp_path, f"--experts.colour={bad}"))
    assert "NaN and infinite weights" in capsys.readouterr().out
    assert "NaN or infinite" in fails(capsys, "fisher", *config, "--expert", bad)
    other = copied(source, tmp_path / "other", **{name: torch.zeros(3, 3)})
    line = fails(capsys, "fisher", *config, "--expert", other, "--dry_run", "true")
    assert name in line and "(3, 3)" in line
    line = fails(capsys, *merge(zoo, tmp_path, f"--experts.colour={other}"))
    assert name in line and "(3, 3)" in line
    assert not (tmp_path / "x.h5").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("suffix", [".h5", ".safetensors"])
def test_a_fishers_header_is_checked(zoo, tmp_path, capsys, idle, suffix):
    def given(**fishers):
        return [
            *["merge", "--method", "FisherMerge", "--output", tmp_path / "out"],
            *[
                f"--experts.{task}={json.dumps({'path': zoo.experts[task], 'fisher': str(path)})}"
                for task, path in fishers.items()
            ],
            *["--optimizer.search", "Dirichlet", "--dry_run", "true"],
            *["--config", data_config(zoo, tmp_path)],
        ]

    files, values = {}, {}
    for task, source in zoo.experts.items():
        files[task] = tmp_path / f"{task}{suffix}"
        values[task] = {
            name: torch.full_like(weight, torch.nan)
            for name, weight in load_file(Path(source) / "model.safetensors").items()
        }
        write_fisher(files[task], values[task], {"model_sha256": "any", "model": source})
    run(*given(**files))
    own = values["colour"]
    name = next(iter(own))
    write_fisher(files["colour"], own, {"model": "unknown"})
    assert "is the Fisher of another model" in fails(capsys, *given(**files))
    write_fisher(files["colour"], {**own, name: torch.zeros(2)}, {"model_sha256": "any"})
    line = fails(capsys, *given(**files))
    assert f"colour{suffix}: tensor '{name}' is (2,)" in line


def sparse(source, folder, rows):
    """A model of so many tokens, whose file claims its weights and has none on the disk."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, weight in load_file(folder / "model.safetensors").items():
        shape = list(weight.shape)
        if name.endswith("word_embeddings.weight"):
            shape[0] = rows
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return folder


def test_no_weights_are_read_however_many_there_are(zoo, tmp_path, capfd, monkeypatch):
    """Two experts and a base of 60 GB each."""
    memory = Memory(8 * 2**30, 16 * 2**30)
    monkeypatch.setattr("fmerge.runs.dry_run.free_memory", lambda device: memory)
    width = json.loads((Path(zoo.base) / "config.json").read_text())["hidden_size"]
    rows = 60 * 2**30 // (4 * width)
    names = {**zoo.experts, "base": zoo.base}
    models = {name: sparse(Path(one), tmp_path / name, rows) for name, one in names.items()}
    if 512 * models["base"].joinpath("model.safetensors").stat().st_blocks > 2**20:
        pytest.skip("the file system has no sparse files")
    arguments = [
        *["merge", "--config", data_config(zoo, tmp_path), "--base", models.pop("base")],
        *[f"--experts.{task}={path}" for task, path in models.items()],
        *["--method", "TaskArithmetic", "--output", tmp_path / "out", "--dry_run", "true"],
    ]
    context = multiprocessing.get_context("fork")
    grown = context.Value("d")

    def target():
        torch.set_num_threads(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run(*arguments)
        grown.value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    process = context.Process(target=target)
    process.start()
    process.join(300)
    printed = capfd.readouterr()
    assert process.exitcode == 0, printed.err
    assert "307,2" in printed.out and "not measured: a batch takes 184,3" in printed.out
    assert grown.value < 2**20  # KiB: imports and tokenizers
    assert not (tmp_path / "out").exists()


def test_other_kinds_of_models(zoo, tmp_path, capsys, idle):
    t5 = [*text_to_text(tmp_path), "--output", tmp_path / "x.h5", "--dry_run", "true"]
    run("fisher", *t5, "--split", "validation")
    assert "an estimate from one batch of 4" in capsys.readouterr().out
    own = tmp_path / "own.ckpt"
    torch.save({"state_dict": Own(5).state_dict()}, own)
    config = ["--config", data_config(zoo, tmp_path, "colour"), "--output", tmp_path / "x.h5"]
    model = ["--model", "tests.cli.test_fisher_pass.Own", "--expert", own, "--dry_run", "true"]
    run("fisher", *config, *model, "--model.width", "5")
    assert "an estimate from one batch of 4" in capsys.readouterr().out
    line = fails(capsys, "fisher", *config, *model)
    assert "own.ckpt: tensor 'embedding.weight' is (40, 5), but (40, 4) in Own" in line
    assert not (tmp_path / "x.h5").exists()


def test_the_estimate_is_the_time_of_a_batch_times_the_batches():
    data, four = MultiTask(batch_size=4), ("score", "a", "validation", 13)
    passes = Counter({four: 7, ("Fisher", "a", "train", 8): 2})
    times = {("score", "a"): 0.5, ("Fisher", "a"): 3.0}
    # 13 examples in batches of 4 are 4 batches
    assert total_seconds(passes, times, data, 1) == 7 * 4 * 0.5 + 2 * 2 * 3.0
    assert total_seconds(passes, times, data, 2) == 7 * 2 * 0.5 + 2 * 1 * 3.0
    assert total_seconds({("score", "a", "test", 1300): 1}, times, data, 1) == 325 * 0.5


def test_the_estimates_of_both_commands(zoo, tmp_path, capsys, monkeypatch):
    """Every pass over a batch takes an hour; 13 and 11 examples a task, in batches of 4."""
    hours = iter(range(0, 3600 * 1000, 3600))
    measure = measured.seconds_of_pass
    monkeypatch.setattr(
        "fmerge.runs.dry_run.seconds_of_pass",
        lambda *args, **options: measure(*args, **options, clock=lambda: next(hours)),
    )
    config = ["--config", data_config(zoo, tmp_path, "colour"), "--output", tmp_path / "x.h5"]
    fisher = ["fisher", *config, "--expert", zoo.experts["colour"], "--dry_run", "true"]
    run(*fisher, "--data.batch_size", "2")
    assert "about 10.0 h: an estimate from one batch of 2 (60 min)" in capsys.readouterr().out
    run(*fisher, "--examples", "7", "--data.batch_size", "auto")
    assert "about 60 min: an estimate from one batch of 16" in capsys.readouterr().out
    # 7 trials and the plain average on two tasks of 4 batches; then base, experts, average,
    # runner-up and merge on 3, and the base with refitted heads on 5 + 3 batches
    run(*merge(zoo, tmp_path, "--method", "Isotropic"))
    assert f"about {2 * (8 * 4 + 5 * 3 + 8)}.0 h" in capsys.readouterr().out
    run(*merge(zoo, tmp_path, "--method", "Isotropic", "--baselines", "experts"))
    assert f"about {2 * (8 * 4 + 2 * 3)}.0 h" in capsys.readouterr().out
    # the Fishers of 13 examples at each of 7 trials and for the best
    run(*merge(zoo, tmp_path, "--baselines", "experts"))
    assert f"about {2 * (8 * 4 + 2 * 3 + 8 * 4)}.0 h" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "x.h5").exists()
