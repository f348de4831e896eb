"""What a newcomer reads: help, printed configurations, and one line for each mistake."""

from dataclasses import fields
from inspect import signature

import pytest
import yaml

from fmerge.cli.app import FMergeCLI, main
from fmerge.cli.classes import CLASSES
from fmerge.cli.help import clause
from fmerge.cli.messages import one_line
from fmerge.data import MultiTask
from fmerge.errors import classes_of
from fmerge.fisher import FisherSettings
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.trainer import FMergeTrainer
from tests.cli.run import data_config, experts, fails, in_process

COMMANDS = ["fit", "fisher", "merge", "validate", "test"]


def test_help_of_the_program(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f"    {command} " in text for command in COMMANDS)


def shown(capsys, *line):
    """What a command line of help prints."""
    with pytest.raises(SystemExit) as end:
        main(list(line))
    assert end.value.code == 0
    return capsys.readouterr().out


def names(function, *without):
    return {f"--{name}" for name in signature(function).parameters if name not in without}


DATA = {f"--data.{name[2:]}" for name in names(MultiTask)}
OWN = {
    "merge": names(FMergeTrainer.merge, "self", "model", "datamodule", "fisher")
    | {f"--fisher.{one.name}" for one in fields(FisherSettings)}
    | {f"--optimizer.{name[2:]}" for name in names(MergeOptimizer)}
    | {"--mergekit", "--push_to_hub", "--push_private"},
    "fisher": names(FMergeTrainer.fisher, "self", "model", "datamodule"),
    "fit": {"--output", "--overwrite", "--ckpt_path"},
    "validate": {"--ckpt_path"},
    "test": {"--ckpt_path"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_a_line_for_each_of_its_own_options(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(capsys, command, "--help")
    lines = text.splitlines()
    assert lines[0] == f"usage: fmerge {command} [options]"
    assert len(lines) <= (120 if command == "merge" else 45)
    options = {line.split()[0]: line for line in lines if line.startswith("  --")}
    general = {"--help-all", "--help-trainer", "--print_config", "--seed_everything"}
    assert OWN[command] | DATA | general | {"--model"} <= options.keys()
    assert not any(name.startswith(("--trainer", "--checkpoint")) for name in options)
    for name, line in options.items():
        about = line.removeprefix(f"  {name}").strip()
        assert len(about) > 4 and len(line) <= 80, line
        assert "…" not in about.replace(" …", ""), f"a word is cut: {line}"
    assert "  -h, --help " in text and "  -c, --config " in text


def test_help_of_a_merge_lists_methods_and_searches_and_what_is_required(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = shown(capsys, "merge", "-h").splitlines()
    for kind in ("method", "search"):
        for name in classes_of(*CLASSES[kind]):
            assert any(line.startswith(f"  {name} ") for line in lines), name
    required = {line.split()[0] for line in lines if line.endswith("[required]")}
    assert required == {"--experts", "--output"}
    assert (
        "  --refit_examples            Training examples of a task that heads are fitted on … [512]"
        in lines
    )


@pytest.mark.parametrize("command", ["merge", "fit"])
def test_more_help_is_asked_for(command, capsys):
    trainer = shown(capsys, command, "--help-trainer")
    assert "--trainer.devices DEVICES" in trainer and "(type: " in trainer
    assert ("--checkpoint.monitor" in trainer) == (command == "fit")
    assert "--output" not in trainer and "--data." not in trainer
    whole = shown(capsys, command, "--help-all")
    assert trainer[trainer.index("Lightning's own") :] in whole
    assert "--output OUTPUT" in whole and "--data.tasks TASKS" in whole


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("One thing. And more.", 60, "One thing"),
        ("One thing; another; more", 60, "One thing; another; more"),
        ("One thing; another; more", 20, "One thing; another …"),
        ("One long thing; null: all of it", 24, "One long thing …"),
        ("A word that, ends", 16, "A word that …"),
        ("It, that has no later clause", 20, "It, that has no …"),
        ("Of Yadav et al. and so on.", 60, "Of Yadav et al. and so on"),
        ("``code`` as\n  text", 60, "code as text"),
    ],
)
def test_an_explanation_ends_with_a_clause(text, most, expected):
    assert clause(text, most) == expected


@pytest.mark.parametrize(
    ("line", "made"),
    [(["--help"], []), (["fit", "-h"], ["fit"]), (["merge", "--help-trainer"], ["merge"])],
)
def test_help_prepares_the_options_that_it_shows_alone(line, made, monkeypatch, capsys):
    prepared = []
    add = FMergeCLI._add_arguments
    monkeypatch.setattr(
        FMergeCLI,
        "_add_arguments",
        lambda self, parser: (prepared.append(self._adding), add(self, parser))[1],
    )
    with pytest.raises(SystemExit):
        main(line)
    assert prepared == made


def test_the_script_and_its_help_run_as_a_process():
    assert "fisher" in in_process("--help")


def test_a_printed_configuration_runs_as_it_is(zoo, tmp_path, capsys):
    config = data_config(zoo, tmp_path)
    output = tmp_path / "out"
    options = [*experts(zoo), "--output", output, "--method", "Isotropic"]
    with pytest.raises(SystemExit) as end:
        main(["merge", "--config", config, *map(str, options), "--print_config"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["method"]["class_path"] == "fmerge.methods.Isotropic"
    assert not output.exists()
    (tmp_path / "printed.yaml").write_text(printed)
    main(["merge", "--config", str(tmp_path / "printed.yaml"), "--optimizer.search", "Fixed"])
    assert (output / "merged" / "colour" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mege"], "invalid choice: 'mege'"),
        (["merge", "--methd", "Average"], "--methd: no such option; did you mean --method?"),
        (
            ["merge", "--experts={a: x, b: y}", "--output=o", "--method=Foo"],
            "--method: unknown class 'Foo'; known: Auto, Average, Breadcrumbs, CoreSpace, DARE, "
            "DELLA, DFMerge, FeatCal, FisherMedian, FisherMerge, FisherTSV, IsoC, IsoCTS, "
            "Isotropic, Karcher, LiNeS, ModelStock, MultiSLERP, NuSLERP, RegMean, RegMeanPP, SCE, "
            "SLERP, TIES, TSVM, TaskArithmetic, WUDI",
        ),
        (
            ["merge", "--experts={a: x, b: y}", "--output=o", "--optimizer.search=Foo"],
            "--optimizer.search: unknown class 'Foo'; known: AxSearch, Dirichlet, Fixed, Grid, "
            "RandomSearch, Sobol",
        ),
        (
            [
                *["merge", "--experts={a: x, b: y}", "--output=o"],
                *["--optimizer.search=AxSearch", "--optimizer.search.acquisition=pi"],
            ],
            "acquisition: unknown value 'pi'; known: nei, ei, ucb",
        ),
        (
            ["fisher", "--expert=x", "--output=o.h5", "--data.tasks.a=Foo"],
            "--data.tasks: unknown class 'Foo'; known: "
            + ", ".join(sorted(classes_of(*CLASSES["tasks"]))),
        ),
        (
            ["fisher", "--expert=x", "--output=o.h5", "--estimator=magic"],
            "--estimator: unknown value 'magic'; known: exact, sampled, empirical",
        ),
        (["fisher", "--expert=x"], "--output: required but not given"),
        (["fit", "--data.num_workers=-1"], "--data.num_workers: is -1, but must lie in [0, inf)"),
        (["fit", "--model.learning_rate=-1"], "--model.learning_rate: is -1.0, but must lie in"),
        (["test", "--model=RankChoice", "--model.max_length=0"], "--model.max_length: is 0, but"),
        (["fit", "--seed_everything=-4"], "--seed_everything: -4 is not in bounds"),
        ([], "one of {fit,fisher,merge,validate,test}"),
        (["merge"], "--experts, --output: required but not given"),
        (["fit"], "--data.tasks: is not set; name the task and its data"),
        (["validate"], "--data.tasks: is not set; name the task and its data"),
        (["test"], "--data.tasks: is not set; name the task and its data"),
        (
            ["merge", "--experts={a: x, b: y}", "--output=o", "--method.density=0.5"],
            "--method.density: name the class first, with --method; known: Auto, Average, ",
        ),
        (
            ["merge", "--experts={a: x, b: y}", "--output=o", "--method=TIES", "--method.dens=1"],
            "--method.dens: TIES has no such option; did you mean density? known: density, "
            "per_tensor, scale",
        ),
        (
            ["fisher", "--expert=x", "--output=o.h5", "--experts={a: x}"],
            "--experts: no such option; did you mean --expert?",
        ),
        (["merge", "--overwrite"], "--overwrite: needs a value, such as true"),
        (["merge", "--config=absent.yaml"], "absent.yaml"),
        (["fisher", "--expert=x", "--output=o.h5", "--examples=many"], "--examples: "),
    ],
)
def test_parsing_errors_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "search", "trials"),
    [
        (["--optimizer.search.trials=12"], "AxSearch", 12),
        (["--optimizer.search=Sobol", "--optimizer.search.trials=12"], "Sobol", 12),
        (["--config=sobol.yaml", "--optimizer.search.trials=12"], "Sobol", 12),
        (["--config=sobol.yaml"], "Sobol", 7),
    ],
)
def test_the_searchs_options_are_ax_searchs_unless_another_is_named(
    given, search, trials, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings = {"class_path": "Sobol", "init_args": {"trials": 7}}
    (tmp_path / "sobol.yaml").write_text(yaml.safe_dump({"optimizer": {"search": settings}}))
    with pytest.raises(SystemExit):
        main(["merge", "--experts={a: x, b: y}", "--output=o", *given, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["optimizer"]["search"]
    assert found["class_path"] == f"fmerge.search.{search}"
    assert found["init_args"]["trials"] == trials


def test_an_unknown_key_of_a_configuration_is_named_with_its_command(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("expert: {a: x}")
    line = fails(capsys, "merge", "--config", tmp_path / "c.yaml", "--output", tmp_path / "o")
    assert line == "fmerge: error: --expert.a: no such option of merge; did you mean --experts?"


def test_unknown_messages_are_folded_into_one_line():
    assert one_line('Parser key "a.b":\n  something\n   odd', []) == "--a.b: something odd"


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("RankChoice", [], {"learning_rate": 1e-4, "max_length": 512}),
        ("RankChoice", ["--model.max_length=7"], {"learning_rate": 1e-4, "max_length": 7}),
        ("TextClassifier", [], {"learning_rate": 5e-5, "max_length": 128}),
        (None, ["--model.max_length=7"], {"learning_rate": 5e-5, "max_length": 7}),
    ],
)
def test_a_chosen_model_keeps_its_own_defaults(model, given, expected, tmp_path, capsys):
    """jsonargparse would hand it those of the default class."""
    (tmp_path / "model.yaml").write_text(f"model: {{class_path: {model}}}" if model else "{}")
    for way in (["--config", str(tmp_path / "model.yaml")], ["--model", model]):
        if model is None and way[0] == "--model":
            continue
        with pytest.raises(SystemExit):
            main(["validate", *way, *given, "--print_config"])
        settings = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
        assert settings | expected == settings
