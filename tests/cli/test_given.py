"""Command lines and configuration files before they are parsed, and paths in them after."""

import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace

from fmerge.cli.given import config_files, expanded, places, prepared, top_level, without_foreign
from fmerge.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUN", "7")
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path


def test_configuration_files_may_be_at_home(home):
    found = prepared(["merge", "--config=~/a.yaml", "-c", "$HOME/b.yaml", "--output", "~/o"])
    assert found == ["merge", f"--config={home}/a.yaml", "-c", f"{home}/b.yaml", "--output", "~/o"]
    assert config_files(found) == [home / "a.yaml", home / "b.yaml"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--experts.a.path", "P", "--experts.a.fisher=F"], {"a": {"path": "P", "fisher": "F"}}),
        (["--experts.a.fisher=F", "--experts.a=P"], {"a": {"fisher": "F", "path": "P"}}),
        (
            ["--experts={a: P, b: Q}", "--experts.a.fisher", "F"],
            {"a": {"path": "P", "fisher": "F"}},
        ),
        (
            ["--experts.a={path: P, donor: true}", "--experts.a.fisher", "F"],
            {"a": {"path": "P", "donor": True, "fisher": "F"}},
        ),
        (
            ["--experts.v1.5.path=P", "--experts.v1.5.donor=true"],
            {"v1.5": {"path": "P", "donor": True}},
        ),
        (["--config=FILE", "--experts.a.fisher=F"], {"a": {"path": "of the file", "fisher": "F"}}),
        (
            ["--config=FILE", "--experts.c.fisher=F"],
            {"c": {"path": "third", "donor": True, "fisher": "F"}},
        ),
        (["--experts.a.path=P=Q", "--experts.a.path=~/x"], {"a": {"path": "~/x"}}),
    ],
)
def test_fields_of_an_expert_are_joined(home, args, expected):
    experts = {"a": "of the file", "c": {"path": "third", "donor": True}}
    (home / "file.yaml").write_text(yaml.safe_dump({"experts": experts}))
    args = [one.replace("FILE", str(home / "file.yaml")) for one in args]
    found = prepared(["merge", *args, "--output", "o"])
    joined = {}
    for one in found:
        name, equals, value = one.partition("=")
        if name.startswith("--experts."):
            joined[name.removeprefix("--experts.")] = json.loads(value)
    assert joined == expected
    assert found[0] == "merge" and found[-3:-1] == ["--output", "o"]


def test_experts_without_fields_are_left_alone():
    args = ["merge", "--experts.a", "P", "--experts.v1.5=Q", "--experts", "{c: R}"]
    assert prepared(args) == args


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--experts.a.fisher=F"],
            "--experts.a.path: required but not given; name the model whose",
        ),
        (
            ["--experts.a.pth=F"],
            "--experts.a.pth: an expert has no pth; did you mean --experts.a.pa",
        ),
    ],
)
def test_fields_that_are_missing_or_misspelt(args, message):
    with pytest.raises(UserError, match=message):
        prepared(args)


def test_options_of_other_commands_are_left_out_of_a_file():
    content = "experts: {a: x}\nmethod: &m TIES\noutput: 'no'\nseed: 1e-3\nsplit: *m\n"
    foreign = {"experts": True, "method": True}
    text, left = without_foreign(content, foreign)
    assert left == ["experts", "method"]
    assert yaml.safe_load(text) == {"output": "no", "seed": "1e-3", "split": "TIES"}
    assert without_foreign(content, {}) == (content, [])
    # what is no value of the other command's option is a mistake, which the parser names
    assert without_foreign("expert: {a: x}", {"expert": False}) == ("expert: {a: x}", [])
    assert without_foreign("expert: x\na: 1", {"expert": False}) == ("a: 1\n", ["expert"])
    assert without_foreign("- a", foreign) == ("- a", [])


class Action:
    def __init__(self, dest, hint):
        self.dest, self._typehint = dest, hint


def test_which_options_take_a_mapping():
    kinds = {
        "expert": str | None, "output": Path, "fisher.curve": int, "experts": dict[str, str],
        "method": object, "seed": int,
    }  # fmt: skip
    assert top_level([Action(*one) for one in kinds.items()]) == {
        "expert": False, "output": False, "fisher": True, "experts": True, "method": True,
        "seed": False,
    }  # fmt: skip


def test_paths_are_expanded_wherever_they_are(home):
    config = Namespace(
        output=Path("~/o"), base="owner/name",
        experts={"a": Namespace(path="$HOME/a", fisher=None)},
        data=Namespace(tasks={"t": Namespace(init_args=Namespace(
            train="~/t.csv", splits={"test": "runs/$RUN/x.csv"}, text="{{ a }} costs $HOME",
            files=["~/1", ("~/2", 3)],
        ))}),
        trainer=Namespace(default_root_dir="~/r", logger=[Namespace(save_dir="a b/$RUN")]),
    )  # fmt: skip
    expanded(config)
    task = config.data.tasks["t"].init_args
    assert config.output == home / "o" and config.base == "owner/name"
    assert config.experts["a"].path == f"{home}/a" and task.train == f"{home}/t.csv"
    assert task.splits == {"test": "runs/7/x.csv"} and task.text == "{{ a }} costs $HOME"
    assert task.files == [f"{home}/1", (f"{home}/2", 3)]
    assert config.trainer.default_root_dir == f"{home}/r"
    assert config.trainer.logger[0].save_dir == "a b/7"
    with pytest.raises(UserError, match="the environment variable NOT_SET is not set"):
        expanded(Namespace(dirpath="$NOT_SET/x"))


def test_places_of_an_option():
    tasks = {
        "a": {"class_path": "TextFiles", "init_args": {"train": 1}},
        "b": {"class_path": "my.Own", "init_args": {"x": 1, "inner": {"class_path": "T", "x": 2}}},
    }
    trees = [
        {"data": {"tasks": tasks}},
        {"trainer": {"callbacks": [{"class_path": "C", "init_args": {"x": 1}}]}},
        None,
    ]
    assert places(trees, [], "TextFiles", "train") == ["data.tasks.a.train"]
    assert places(trees, [], "Own", "x") == ["data.tasks.b.x"]
    assert places(trees, [], "T", "x") == ["data.tasks.b.inner.x"]
    assert places(trees, [], "C", "x") == ["trainer.callbacks.x"]
    assert places(trees, ["--method.x=3"], "TIES", "x") == ["method.x"]
    assert places(trees, [], "TIES", "y") == []
