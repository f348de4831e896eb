"""One configuration file for all commands, paths at home, and fields of experts without a file."""

import pytest
import yaml

from fmerge.cli.app import main
from fmerge.cli.parser import FMergeParser
from tests.cli.run import data_config, fails


def printed(capsys, *args):
    """The configuration that a command line gives."""
    with pytest.raises(SystemExit):
        main([*map(str, args), "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def shared(zoo, folder, **more):
    config = yaml.safe_load(open(data_config(zoo, folder, "colour"))) | {
        "experts": zoo.experts, "expert": zoo.experts["colour"], "base": zoo.base,
        "method": {"class_path": "Isotropic"}, "optimizer": {"search": {"class_path": "Fixed"}},
        "fisher": {"examples": 3}, "estimator": "empirical", "examples": 4,
        "checkpoint": {"monitor": None}, "task": "colour",
    } | more  # fmt: skip
    path = folder / "shared.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_commands_skip_each_others_options_in_a_file(zoo, tmp_path, capsys):
    path = shared(zoo, tmp_path)
    found = printed(capsys, "fisher", "--config", path, "--output", "f.h5")
    assert (found["estimator"], found["examples"]) == ("empirical", 4)
    assert FMergeParser.skipped["shared.yaml"] == [
        "checkpoint", "experts", "fisher", "method", "optimizer",
    ]  # fmt: skip
    found = printed(capsys, "merge", "--config", path, "--output", "o")
    assert found["fisher"]["examples"] == 3 and found["experts"] == zoo.experts
    assert sorted(FMergeParser.skipped["shared.yaml"]) == [
        "checkpoint", "estimator", "examples", "expert", "task",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
@pytest.mark.slow
def test_other_commands_share_the_file_too(zoo, tmp_path, capsys, command):
    found = printed(capsys, command, "--config", shared(zoo, tmp_path))
    assert found["data"]["batch_size"] == 4 and "experts" not in found


def test_what_no_command_knows_is_still_an_error(zoo, tmp_path, capsys):
    path = shared(zoo, tmp_path, methd="TIES")
    line = fails(capsys, "fisher", "--config", path, "--output", tmp_path / "f.h5")
    assert "--methd: no such option of fisher" in line


def test_a_fisher_and_a_merge_of_one_file_run(zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZOO", str(zoo.root))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(zoo.base)
    tasks = {
        task: {"class_path": "TextFiles", "init_args": {
            split: f"${{ZOO}}/{task}_{split}.csv" for split in files
        }} for task, files in zoo.tasks.items()
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({
        "data": {"tasks": tasks}, "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
        "expert": "$ZOO/expert_colour", "task": "colour", "base": "~/base",
        "experts": {"colour": "$ZOO/expert_colour", "animal": {"path": "$ZOO/expert_animal"}},
        "method": "Average", "baselines": "experts",
    }))  # fmt: skip
    main(["fisher", "--config=~/c.yaml", "--output", "~/f/colour.safetensors"])
    said = capsys.readouterr().out
    assert "c.yaml: skipped options of other commands: baselines, experts, method" in said
    main(["merge", "--config", "$HOME/c.yaml", "--output=~/m"])
    made = sorted(one.name for one in tmp_path.iterdir() if one.name != ".cache")  # matplotlib's
    assert made == ["base", "c.yaml", "f", "m"]
    assert (tmp_path / "m" / "merged" / "animal").is_dir()
    # the Fisher of one expert alone, by its field
    line = fails(
        capsys, "merge", "--config=~/c.yaml", "--method=FisherMerge", "--output=~/n",
        "--experts.colour.fisher=~/f/colour.safetensors",
    )  # fmt: skip
    assert "2 experts but 1 Fishers; none is given for animal" in line


def test_fields_of_experts_without_a_file(capsys):
    experts = ["--experts.a.path=P", "--experts.a.fisher=F", "--experts.b.path", "Q"]
    found = printed(capsys, "merge", *experts, "--experts.c", "R", "--output=o")
    assert found["experts"] == {
        "a": {"path": "P", "fisher": "F", "donor": False},
        "b": {"path": "Q", "fisher": None, "donor": False},
        "c": "R",
    }


def test_a_wrong_entry_is_named_with_those_that_are_known(tmp_path, capsys):
    text = "data: {tasks: {a: {class_path: TextFiles, init_args: {trian: x.csv}}}}"
    (tmp_path / "c.yaml").write_text(text)
    assert fails(capsys, "fit", "--config", tmp_path / "c.yaml").startswith(
        "fmerge: error: --data.tasks.a.trian: TextFiles has no such option; did you mean train? "
        "known: label"
    )
    callback = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitr=x"]
    assert fails(capsys, "fit", *callback).startswith(
        "fmerge: error: --trainer.callbacks.monitr: EarlyStopping has no such option; did you mean "
        "monitor? known: check_finite"
    )


@pytest.mark.parametrize(
    "command", ["fisher", *(pytest.param(one, marks=pytest.mark.slow) for one in ("fit", "merge"))]
)
def test_outputs_that_cannot_be_made(zoo, tmp_path, capsys, command):
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    options = {
        "fit": ["--model.path", zoo.base],
        "fisher": ["--expert", zoo.experts["colour"]],
        "merge": [f"--experts.{task}={path}" for task, path in zoo.experts.items()],
    }
    name = "out.safetensors" if command == "fisher" else "out"
    output = tmp_path / "link" / name
    config = data_config(zoo, tmp_path, *(zoo.tasks if command == "merge" else ["colour"]))
    line = fails(capsys, command, "--config", config, *options[command], "--output", output)
    assert "link is a link to" in line and "which does not exist" in line
