"""Paths with ~ and environment variables."""

import pytest

from fmerge.errors import UserError
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
