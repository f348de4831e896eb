"""Classes on the command line: in any spelling, and listed."""

import pytest

from fmerge import __version__, methods
from fmerge.cli.app import main
from fmerge.cli.classes import listing, spelled
from fmerge.cli.defaults import EPOCHS, with_length
from fmerge.errors import classes_of
from tests.cli.run import fails


def test_classes_are_found_in_any_spelling():
    given = [
        "merge",
        "--method",
        "ties",
        "--optimizer.search=axsearch",
        "--base",
        "ties",
        "--method",
    ]
    assert spelled(given) == [
        *["merge", "--method", "TIES", "--optimizer.search=AxSearch", "--base", "ties", "--method"]
    ]
    # a class of one's own, and the parameters of one
    kept = ["--method", "own.ties", "--method.density", "ties", "--method.help", "dare"]
    assert spelled(kept) == kept


def test_the_methods_are_listed_with_a_line_each(capsys):
    with pytest.raises(SystemExit) as end:
        main(["merge", "--method.help"])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    found = classes_of(methods, methods.MergeMethod)
    assert [line.split()[0] for line in lines[:-1]] == sorted(found)
    assert (
        lines[1]
        == f"{'Average':{max(map(len, found))}}  " + "Plain average of the experts: θ = Σₘ θₘ / M."
    )
    assert lines[-1] == "--method.help NAME lists the parameters of one of them."


def test_other_lines_list_nothing():
    for line in ([], ["merge"], ["--method.help", "TIES"], ["--trainer.help"]):
        assert listing(line) == ""


def test_the_version_and_options_that_are_none(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"fmerge {__version__}\n"
    assert "--verbos: no such option" in fails(capsys, "--verbos")
    assert "did you mean --verbos?" not in fails(capsys, "--verbos")


def test_runs_are_compared_by_a_command(capsys, tmp_path):
    main(["compare", "--help"])
    assert capsys.readouterr().out.startswith("usage: fmerge compare FOLDER")
    assert f"{tmp_path}/scores.json: no such file" in fails(capsys, "compare", tmp_path)
    assert "name the folders of the merges" in fails(capsys, "compare")


def test_a_fit_without_a_length_has_a_few_epochs(capsys):
    assert with_length({"max_epochs": None, "max_steps": -1})["max_epochs"] == EPOCHS
    assert f"fit: {EPOCHS} epochs" in capsys.readouterr().out
    for one in ({"max_epochs": 7}, {"max_steps": 9}, {"max_time": "00:01:00:00"}):
        assert with_length(one) == one
    assert capsys.readouterr().out == ""
