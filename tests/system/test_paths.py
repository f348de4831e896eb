"""Paths with ~ and environment variables."""

from pathlib import Path

import pytest
import torch

from fmerge.data import Prompted, TextFiles
from fmerge.data.template_files import read_template
from fmerge.errors import UserError
from fmerge.merging.expert_fishers import Expert, fisher_files
from fmerge.methods import FisherMerge
from fmerge.store import check_resume, load_classifier, load_tokenizer
from fmerge.store.params_file import load_params
from fmerge.store.sources import local_folder
from fmerge.system.paths import expand, expand_if_path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUN", "run 1")
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~/a", "/home/me/a"),
        ("~", "/home/me"),
        ("~root/a", "/root/a"),
        ("$HOME/a", "/home/me/a"),
        ("${HOME}/a/$RUN.csv", "/home/me/a/run 1.csv"),
        ("data/${RUN}_x", "data/run 1_x"),
        ("a/~/b", "a/~/b"),
        ("owner/name", "owner/name"),
        ("package:demo/model", "package:demo/model"),
        ("cost$5/a", "cost$5/a"),
        ("~backup.csv", "~backup.csv"),
    ],
)
def test_expand(given, expected):
    assert expand(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("$NOT_SET/a", r"\$NOT_SET/a: the environment variable NOT_SET is not set; set it"),
        ("a/${NOT_SET}", r"variable NOT_SET is not set"),
        ("~nobody-here/a", "~nobody-here/a: there is no user whose home folder ~nobody-here is"),
    ],
)
def test_what_cannot_be_expanded_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        expand(given)


def test_a_value_is_not_expanded_again_and_what_exists_keeps_its_name(home, monkeypatch):
    monkeypatch.setenv("RUN", "$HOME")
    assert expand("a/$RUN") == "a/$HOME"
    (home / "$NOT_SET").mkdir()
    assert expand("$NOT_SET") == "$NOT_SET"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~/my files/a.csv", "/home/me/my files/a.csv"),
        ("$HOME", "/home/me"),
        ("data/$RUN/a.csv", "data/run 1/a.csv"),
        ("$NOT_SET/a", "$NOT_SET/a"),
        ("~", "~"),
        ("It costs $HOME or $5/day", "It costs $HOME or $5/day"),
        ("{{ a }}/$HOME", "{{ a }}/$HOME"),
        (r"layer\.\d+$", r"layer\.\d+$"),
        ("a/b$", "a/b$"),
    ],
)
def test_of_texts_only_plain_paths_are_expanded(text, expected):
    assert expand_if_path(text) == expected


def test_every_reader_expands_its_path(zoo, monkeypatch):
    monkeypatch.setenv("HOME", str(zoo.root))
    monkeypatch.setenv("TASK", "colour")
    weights = load_params("~/expert_$TASK")
    assert weights.keys() == load_params(zoo.experts["colour"]).keys()
    assert local_folder("~/base") == zoo.base
    assert load_tokenizer("${HOME}/base").vocab_size == 18
    assert load_classifier("~/expert_$TASK", "colour").config.num_labels == 3
    task = TextFiles(train="~/${TASK}_train.csv", test="$HOME/${TASK}_test.csv")
    assert len(task.examples("test")) == 11
    prompts = Prompted(
        splits={"validation": "~/colour_validation.csv"}, text="{{ text }}", choices=["a", "b"],
        label="0",
    )  # fmt: skip
    assert len(prompts.examples("validation")) == 13
    (zoo.root / "template.yaml").write_text("text: x\nchoices: [a, b]\nlabel: '0'\n")
    assert read_template("~/template.yaml").text == "x"
    given = {"a": Expert("x", Path("~/a.h5")), "b": Expert("y", Path("$HOME/b.h5"))}
    files = fisher_files(given, FisherMerge())
    assert files == {"a": zoo.root / "a.h5", "b": zoo.root / "b.h5"}


@pytest.mark.parametrize("read", [load_params, local_folder, load_tokenizer, check_resume])
def test_every_reader_names_a_variable_that_is_not_set(read):
    with pytest.raises(UserError, match="the environment variable NOT_SET is not set"):
        read("$NOT_SET/model")


def test_checkpoints_are_found_at_home(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    torch.save({"state_dict": {"a": torch.ones(2)}, "hyper_parameters": {}}, home / "x.ckpt")
    check_resume("~/x.ckpt")
    assert load_params("~/x.ckpt")["a"].tolist() == [1.0, 1.0]
