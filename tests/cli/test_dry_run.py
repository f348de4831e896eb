"""A dry run makes the checks of a run, says what would be done and writes nothing."""

import pytest

from fmerge.cli import main
from fmerge.modules import TextClassifier
from tests.cli.run import data_config, experts, fails


def run(*args):
    main([str(arg) for arg in args])


@pytest.fixture
def idle(monkeypatch):
    """No batch may be computed."""

    def fail(self, batch):
        raise AssertionError("a dry run computed something")

    monkeypatch.setattr(TextClassifier, "label_log_probs", fail)


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


def test_a_dry_run_of_a_run_that_would_go_on_changes_nothing(zoo, tmp_path, capsys):
    output = tmp_path / "runs" / "out"
    run(*merge(zoo, tmp_path, "--method", "Isotropic", "--dry_run", "false"))
    (output / "report.md").unlink()
    before = {one: one.stat().st_mtime_ns for one in output.rglob("*")}
    run(*merge(zoo, tmp_path, "--method", "Isotropic"))
    assert "7 trials, after those that the output folder has" in capsys.readouterr().out
    assert before == {one: one.stat().st_mtime_ns for one in output.rglob("*")}
    run(*merge(zoo, tmp_path, "--method", "Isotropic", "--dry_run", "false"))
    assert "Going on after 7 trials" in capsys.readouterr().out


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
