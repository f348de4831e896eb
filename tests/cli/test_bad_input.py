"""A user's mistake: exit code 2, one line with the culprit's name, and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from fmerge.store import write_fisher
from tests import tiny
from tests.cli.run import data_config, experts, fails


def expert_with(zoo, tmp_path, change) -> str:
    """A copy of an expert whose tensors are changed."""
    folder = tmp_path / "changed"
    shutil.copytree(zoo.experts["colour"], folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def wider(zoo, tmp_path) -> str:
    config = tiny.bert_config(tiny.LABELS["colour"], intermediate_size=32)
    return tiny.save(tiny.classifier(config), tmp_path / "wider")


def deeper(zoo, tmp_path) -> str:
    config = tiny.bert_config(tiny.LABELS["colour"], num_hidden_layers=3)
    return tiny.save(tiny.classifier(config), tmp_path / "deeper")


def fisher_of(zoo, tmp_path, path, change=lambda values: None, sha=None) -> Path:
    from fmerge.params import fingerprint, params_of

    model = AutoModelForSequenceClassification.from_pretrained(path)
    values = {name: torch.ones_like(tensor) for name, tensor in params_of(model).items()}
    change(values)
    file = tmp_path / "fishers" / f"{Path(path).name}.safetensors"
    provenance = {"model": path, "model_sha256": sha or fingerprint(params_of(model))}
    write_fisher(file, values, provenance)
    return file


def with_fishers(zoo, files) -> list[str]:
    return [
        f"--experts.{task}=" + json.dumps({"path": path} | ({"fisher": str(f)} if f else {}))
        for (task, path), f in zip(zoo.experts.items(), files, strict=True)
    ]


def nan(tensors):
    tensors["bert.encoder.layer.0.output.dense.weight"][0, 0] = torch.nan


def inf(tensors):
    tensors["bert.pooler.dense.bias"][3] = torch.inf


def colour(zoo, path) -> list[str]:
    """The experts, with another one for the colours."""
    return [f"--experts.colour={path}", f"--experts.animal={zoo.experts['animal']}"]


def of_one_class(folder):
    (folder / "one.csv").write_text("text,label\nred cat,warm\nsky,warm\n")
    return folder / "one.csv"


def merge_cases():
    """Name, arguments after the data and output, and what the line must hold."""
    return {
        "missing expert": (
            lambda z, t: [
                f"--experts.colour={t}/absent",
                f"--experts.animal={z.experts['animal']}",
            ],
            ["absent: no such file or folder"],
        ),
        "expert is a file": (
            lambda z, t: colour(z, z.tasks["colour"]["train"]),
            ["colour_train.csv: is neither a Hugging Face folder nor a Lightning .ckpt"],
        ),
        "other shapes": (
            lambda z, t: [
                f"--experts.colour={wider(z, t)}",
                f"--experts.animal={z.experts['animal']}",
            ],
            [
                "wider: tensor 'bert.encoder.layer.0.intermediate.dense.weight' is (32, 16), "
                "but (24, 16) in the base",
                "and 5 more tensors differ",
            ],
        ),
        "other names": (
            lambda z, t: [
                f"--experts.colour={deeper(z, t)}",
                f"--experts.animal={z.experts['animal']}",
            ],
            [
                "deeper: tensor 'bert.encoder.layer.2.attention.self.query.weight' is (16, 16), "
                "but no such tensor in the base",
                "and 15 more",
            ],
        ),
        "NaN in weights": (
            lambda z, t: colour(z, expert_with(z, t, nan)),
            ["changed: tensor 'bert.encoder.layer.0.output.dense.weight' holds 1 NaN"],
        ),
        "Inf in weights": (
            lambda z, t: colour(z, expert_with(z, t, inf)),
            ["changed: tensor 'bert.pooler.dense.bias' holds 1 NaN or infinite"],
        ),
        "experts that are no tasks": (
            lambda z, t: [f"--experts.sound={z.experts['colour']}", *experts(z)],
            ["--experts: are for animal, colour, sound, but the data's tasks are animal, colour"],
        ),
        "one expert": (
            lambda z, t: [f"--experts.colour={z.experts['colour']}"],
            ["a merge needs at least two experts"],
        ),
        "too few Fishers": (
            lambda z, t: [
                *with_fishers(z, [fisher_of(z, t, z.experts["colour"]), None]),
                "--method=FisherMerge",
            ],
            ["2 experts but 1 Fishers; none is given for animal"],
        ),
        "Fishers of other models": (
            lambda z, t: [
                *with_fishers(
                    z,
                    [fisher_of(z, t, path, sha="x") for path in z.experts.values()],
                ),
                "--method=FisherMerge",
            ],
            ["expert_colour.safetensors: is the Fisher of another model"],
        ),
        "Fishers of other shapes": (
            lambda z, t: [
                *with_fishers(z, [fisher_of(z, t, z.experts["animal"])] * 2),
                "--method=FisherMerge",
            ],
            ["tensor 'classifier.weight' is (2, 16), but (3, 16) in"],
        ),
        "NaN in a Fisher": (
            lambda z, t: [
                *with_fishers(z, [fisher_of(z, t, p, nan) for p in z.experts.values()]),
                "--method=FisherMerge",
            ],
            [
                "expert_colour.safetensors: tensor",
                "layer.0.output.dense.weight' holds 1 NaN",
            ],
        ),
        "missing Fisher": (
            lambda z, t: [*with_fishers(z, [t / "no.h5", t / "no.h5"]), "--method=FisherMerge"],
            ["no.h5: no such Fisher file"],
        ),
        "coefficients that are no numbers": (
            lambda z, t: [
                *experts(z),
                "--optimizer.search=Fixed",
                "--optimizer.search.coefficients={colour: 0.5, animal: .nan}",
            ],
            ["the coefficient of 'animal' is nan, but must be a finite number"],
        ),
        "coefficients and a search": (
            lambda z, t: [*experts(z), "--coefficients={colour: 0.5, animal: 0.5}"],
            ["--coefficients: are given, and so is --optimizer.search"],
        ),
        "negative coefficients of a mean": (
            lambda z, t: [
                *experts(z),
                "--method=FisherMerge",
                "--optimizer.bounds={colour: [-1, 1]}",
            ],
            ["FisherMerge: divides by the sum of the coefficients", "that of 'colour' is -1 or"],
        ),
        "unknown target": (
            lambda z, t: [*experts(z), "--optimizer.target=sound"],
            ["unknown task 'sound' as target; known: colour, animal"],
        ),
        "several objectives for an acquisition of one": (
            lambda z, t: [
                *experts(z),
                "--optimizer.search=AxSearch",
                "--optimizer.search.acquisition=ei",
                "--optimizer.objective=[mean, worst]",
            ],
            ["acquisition 'ei' is of one objective, but there are 2 (mean, worst); use nei"],
        ),
        "a race for several objectives": (
            lambda z, t: [
                *[*experts(z), "--optimizer.racing=true"],
                "--optimizer.objective=[mean, worst]",
            ],
            ["--optimizer.racing: stops what cannot be best by one objective, but there are 2"],
        ),
        "a race on a part of the validation split": (
            lambda z, t: [
                *[*experts(z), "--optimizer.racing=true"],
                "--trainer.limit_val_batches=2",
            ],
            ["--optimizer.racing: needs the whole validation split, but limit_val_batches is 2"],
        ),
        "batches of a search that polishes": (
            lambda z, t: [
                *[*experts(z), "--optimizer.batch=2"],
                "--optimizer.search=AxSearch",
                "--optimizer.search.polish=3",
            ],
            [
                "--optimizer.batch: is 2, but AxSearch makes one trial at a time: its polish goes "
                "from one trial to the next"
            ],
        ),
        "an objective twice": (
            lambda z, t: [*experts(z), "--optimizer.objective=[mean, mean]"],
            ["objective: 'mean' would be two of the objectives"],
        ),
        "a trial of no run": (
            lambda z, t: [*experts(z), "--build=3"],
            ["holds no finished run to build a trial of"],
        ),
        "no Fisher examples": (
            lambda z, t: [*experts(z), "--method=DFMerge", "--fisher.examples=0"],
            ["examples: is 0"],
        ),
        "one example to refit heads on": (
            lambda z, t: [*experts(z), "--refit_heads=end", "--refit_examples=1"],
            ["--refit_examples: is 1, but two classes need at least 2"],
        ),
        "heads refitted to one class": (
            lambda z, t: [
                *[*experts(z), "--refit_heads=trials"],
                f"--data.tasks.colour.init_args.train={of_one_class(t)}",
            ],
            ["--refit_examples: the 2 training examples of task 'colour' are all of one class"],
        ),
        "heads of different labels to merge": (
            lambda z, t: [*experts(z), "--heads=merge"],
            ["--heads: is merge, but task 'colour' has 3 labels (cold, none, warm), not the 2"],
        ),
        "a shard size that is no number": (
            lambda z, t: [*experts(z), "--max_shard_size=much"],
            ["--max_shard_size: is 'much', but must be a number of bytes or a size such as 5GB"],
        ),
    }


@pytest.mark.parametrize("case", merge_cases())
def test_merge_refuses(case, zoo, tmp_path, capsys):
    arguments, expected = merge_cases()[case]
    output = tmp_path / "out"
    line = fails(
        capsys,
        *["merge", "--config", data_config(zoo, tmp_path), "--base", zoo.base],
        *["--method", "Isotropic", "--optimizer.search", "Dirichlet", "--output", output],
        *arguments(zoo, tmp_path),
    )
    assert all(part in line for part in expected), line
    assert not output.exists()


def test_merge_refuses_a_grid_for_three_models(zoo, tmp_path, capsys):
    three = [*experts(zoo), f"--experts.third={zoo.experts['colour']}"]
    grid = ["--output", tmp_path / "o", "--optimizer.search", "Grid"]
    line = fails(capsys, "merge", *experts(zoo), *grid)
    assert "Grid: Average has no coefficients to search" in line
    line = fails(capsys, "merge", *experts(zoo), *grid, "--method", "Isotropic")
    assert "Grid: needs data to score its trials on" in line
    config = data_config(zoo, tmp_path)
    arguments = ["--config", config, "--output", tmp_path / "o", "--optimizer.search", "Grid"]
    line = fails(capsys, "merge", *arguments, *three, "--method", "Isotropic")
    assert "there are 3 (colour, animal, third); use Dirichlet or AxSearch" in line
    assert not (tmp_path / "o").exists()


def test_merge_refuses_methods_without_what_they_need(zoo, tmp_path, capsys):
    output = ["--output", tmp_path / "o"]
    line = fails(capsys, "merge", *experts(zoo), *output, "--method", "TaskArithmetic")
    assert "--base: is not set, but TaskArithmetic needs" in line
    line = fails(capsys, "merge", *experts(zoo), *output, "--base", zoo.base, "--method", "DFMerge")
    assert "DFMerge: needs data" in line
    assert not (tmp_path / "o").exists()


def test_merge_refuses_parameters_and_experts_that_a_method_cannot_take(zoo, tmp_path, capsys):
    output = ["--output", tmp_path / "o", "--base", zoo.base, "--optimizer.search", "Fixed"]
    ties = ["--method", "TIES", "--method.density", "1.5"]
    line = fails(capsys, "merge", *experts(zoo), *output, *ties)
    assert line == "fmerge: error: density: is 1.5, but must lie in (0, 1]"
    assert not (tmp_path / "o").exists()
    three = [*experts(zoo), f"--experts.third={zoo.experts['colour']}"]
    line = fails(capsys, "merge", *three, *output, "--method", "SLERP")
    assert line == "fmerge: error: SLERP merges two experts, but there are 3; use Karcher"
    assert not (tmp_path / "o").exists()


def test_full_folders_and_existing_files_are_kept(zoo, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("mine")
    config = data_config(zoo, tmp_path, "colour")
    for line in (
        fails(capsys, "merge", *experts(zoo), "--output", full),
        fails(capsys, "fit", "--config", config, "--model.path", zoo.base, "--output", full),
    ):
        assert "full: the folder is not empty; name another or add --overwrite true" in line
    old = tmp_path / "old.h5"
    old.write_text("mine")
    fisher = ["fisher", "--config", config, "--expert", zoo.experts["colour"]]
    assert "old.h5: exists already" in fails(capsys, *fisher, "--output", old)
    assert old.read_text() == "mine" and [p.name for p in full.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task=sound"], "unknown task 'sound'; the data has: animal, colour"),
        ([], "--task: is not set, but the data has animal, colour; pick one"),
        (["--task=colour", "--expert=absent/model"], "absent/model: "),
        (["--task=colour", "--output=x.pt"], "x.pt: must end in .safetensors or .h5"),
        (["--task=colour", "--samples=0"], "samples: is 0"),
        (["--task=animal"], "its labels are ['warm', 'cold', 'none'], but the task's are"),
    ],
)
def test_fisher_refuses(arguments, expected, zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no second tries
    config = data_config(zoo, tmp_path)
    before = set(tmp_path.iterdir())
    line = fails(
        capsys,
        *["fisher", "--config", config, "--expert", zoo.experts["colour"]],
        *["--output", "out.h5", *arguments],
    )
    assert expected in line
    assert set(tmp_path.iterdir()) == before


def test_fit_refuses(zoo, tmp_path, capsys):
    config = data_config(zoo, tmp_path, "colour")
    output = tmp_path / "out"
    fit = ["fit", "--config", config, "--output", output]
    assert "--model.path: is not set" in fails(capsys, *fit)
    line = fails(capsys, *fit, "--model.path", tmp_path / "absent")
    assert "absent: no such file or folder" in line
    line = fails(capsys, *fit, "--model.path", "package:nope/model")
    assert "the package 'nope' is not installed" in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train": "absent.csv"}, "absent.csv: no such file"),
        ({"text": "sentence"}, "has no column 'sentence'; its columns: label, text"),
        ({"labels": ["warm", "cold"]}, "unknown label 'none'; known: cold, warm"),
        ({"validation": None}, "no file is given for the validation split"),
    ],
)
def test_data_are_refused(change, expected, zoo, tmp_path, capsys):
    settings = {**zoo.tasks["colour"], "labels": tiny.LABELS["colour"]} | change
    data = {"class_path": "TextFiles", "init_args": {k: v for k, v in settings.items() if v}}
    output = tmp_path / "out"
    line = fails(
        capsys,
        *["fit", "--model.path", zoo.base, "--output", output],
        *["--data.tasks", json.dumps({"colour": data}), "--trainer.enable_progress_bar=false"],
    )
    assert expected in line
    assert not output.exists()


def test_a_base_is_no_expert(zoo, tmp_path, capsys):
    config = data_config(zoo, tmp_path, "colour")
    line = fails(capsys, "test", "--config", config, "--model.path", zoo.base)
    assert "labels are ['a', 'b', 'c'], but the task's are ['warm', 'cold', 'none']" in line


def test_splits_that_will_be_needed_are_asked_for_first(zoo, tmp_path, capsys):
    output = tmp_path / "out"
    files = {t: {k: v for k, v in f.items() if k != "train"} for t, f in zoo.tasks.items()}
    tasks = {
        task: {"class_path": "TextFiles", "init_args": {**files[task], "labels": tiny.LABELS[task]}}
        for task in zoo.tasks
    }
    arguments = ["merge", *experts(zoo), "--output", output, "--data.tasks", json.dumps(tasks)]
    line = fails(capsys, *arguments, "--method", "Isotropic", "--refit_heads", "end")
    assert "task 'colour' has no train split to fit a head on" in line
    line = fails(capsys, *arguments, "--method", "FisherMerge", "--fisher.split", "train")
    assert "no file is given for the train split" in line
    assert not output.exists()
