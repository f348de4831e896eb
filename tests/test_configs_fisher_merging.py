"""The shipped configurations of Fisher merging: what their headers tell to type is understood."""

import re
import shlex
from pathlib import Path

import pytest

from fmerge.cli.app import main
from tests import hub_layout

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "configs" / "fisher_merging"


def commands() -> list[str]:
    """What the headers of the paper's configurations and the page on it tell to type."""
    texts = [(ROOT / "docs/reproduce.md").read_text()]
    texts += [re.sub(r"^# ?", "", path.read_text(), flags=re.M) for path in PAPER.glob("*.yaml")]
    found = [one for text in texts for one in re.findall(r"^ +(fmerge (?:.*\\\n)*.*)", text, re.M)]
    joined = {" ".join(one.replace("\\\n", " ").split()) for one in found}
    return sorted(one for one in joined if "configs/fisher_merging/" in one)


def test_every_configuration_of_the_paper_says_what_it_is_for():
    named = " ".join(commands())
    for path in PAPER.glob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# Matena & Raffel 2022, "), path
        assert path.stem in hub_layout.TEXT or f"{path.name} " in f"{named} ", path
    assert len(commands()) >= 9


@pytest.mark.parametrize("command", commands())
def test_the_commands_of_the_paper_are_understood(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main([*shlex.split(command)[1:], "--print_config"])
    captured = capsys.readouterr()
    assert end.value.code == 0, captured.err
    assert "init_args" in captured.out
