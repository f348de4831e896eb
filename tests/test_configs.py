"""Every shipped configuration runs, with a tiny model in the place of the real one."""

import re
import shlex
from pathlib import Path

import pytest

from fmerge.cli import main
from fmerge.data.docs import TOPICS
from tests import hub_layout, tiny

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart"
PAPER = ROOT / "configs" / "fisher_merging"
LIBRARIES = sorted(
    path.stem for path in QUICKSTART.glob("*.yaml") if path.stem not in {"fit", "merge"}
)


def test_every_library_of_the_quickstart_has_a_configuration():
    assert sorted(TOPICS) == LIBRARIES


@pytest.mark.parametrize("library", LIBRARIES)
def test_fit_and_fisher(library, zoo, tmp_path):
    task = str(QUICKSTART / f"{library}.yaml")
    sizes = [
        f"--data.tasks.{library}.init_args.{split}={n}"
        for split, n in (("train", 8), ("validation", 4), ("test", 4))
    ]
    quiet = ["--trainer.enable_progress_bar=false", *sizes]
    output = tmp_path / library
    main([
        *["fit", "--config", str(QUICKSTART / "fit.yaml"), "--config", task, *quiet],
        *["--model.path", zoo.base, "--output", str(output), "--trainer.max_epochs=1"],
    ])
    main([
        *["fisher", "--config", task, *quiet, "--expert", str(output / "expert")],
        *["--examples=5", "--output", str(output / "fisher.safetensors")],
    ])
    assert (output / "fisher.safetensors").is_file()


def test_merge(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = []
    for library in LIBRARIES:
        config = tiny.bert_config(list(TOPICS[library]))
        expert = tiny.save(tiny.classifier(config), tmp_path / library)
        overrides.append(f"--experts.{library}={expert}")
        overrides += [
            f"--data.tasks.{library}.init_args.{split}=4"
            for split in ("train", "validation", "test")
        ]
    main([
        *["merge", "--config", str(QUICKSTART / "merge.yaml"), *overrides],
        *["--base", zoo.base, "--output", "out", "--method", "Average"],
        "--trainer.enable_progress_bar=false",
    ])
    assert sorted(path.name for path in Path("out/merged").iterdir()) == LIBRARIES


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
