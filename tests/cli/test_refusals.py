"""Every kind of bad input: exit code 2, one line that names it, nothing written, nothing run."""

import pickle
from pathlib import Path

import pytest

from tests.cli.bad_files import CHECKPOINTS, FISHERS, OTHERS
from tests.cli.bad_folders import FOLDERS, Payload, folder_arguments
from tests.cli.limits_table import LIMITS, with_tables
from tests.cli.run import fails

CASES = {
    name: (says, arguments)
    for name, says, arguments in [
        *((name, says, folder_arguments(damage)) for name, says, damage in FOLDERS),
        *[*FISHERS, *CHECKPOINTS, *OTHERS],
    ]
}


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("case", CASES)
def test_refused(case, zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    says, arguments = CASES[case]
    command = [str(argument) for argument in arguments(zoo, tmp_path)]
    before = everything(tmp_path)
    line = fails(capsys, *command)
    assert says in line, line
    assert len(line) < 700, line
    assert everything(tmp_path) == before


def test_the_payloads_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_there_are_many():
    assert len(CASES) == len([*FOLDERS, *FISHERS, *CHECKPOINTS, *OTHERS]) >= 60


def test_the_page_of_limits_has_them_all():
    page = LIMITS.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run python -m tests.cli.limits_table"
    assert all(f"| {name} |" in page for name in CASES)
