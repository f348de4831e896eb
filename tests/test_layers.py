"""import-linter finds an import that goes up, whichever room it is planted in."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = Path(sysconfig.get_path("scripts")) / "lint-imports"
LAYERS = "imports go down only"
FORMULAS = "formulas and Fishers know no framework"

pytestmark = pytest.mark.skipif(not LINT.is_file(), reason="import-linter is not installed")


@pytest.fixture
def tree(tmp_path):
    """The package and its contracts, where an import can be planted."""
    shutil.copytree(ROOT / "fmerge", tmp_path / "fmerge", ignore=shutil.ignore_patterns("__pyc*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    # the imports are read, not run: the tree goes before the installed package
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    options = {"cwd": tree, "env": environment, "timeout": 120}
    return subprocess.run([LINT, "--no-cache"], capture_output=True, text=True, **options)


def outcomes(tree: Path) -> tuple[dict[str, str], str]:
    """What import-linter says of each contract, and all it prints."""
    done = lint(tree)
    found = dict(re.findall(r"^(\S.*?) (KEPT|BROKEN)\b", done.stdout, flags=re.MULTILINE))
    assert (done.returncode == 0) == ("BROKEN" not in found.values()), done.stdout + done.stderr
    return found, done.stdout


def test_the_tree_keeps_every_contract(tree):
    found, _ = outcomes(tree)
    assert len(found) == 3 and set(found.values()) == {"KEPT"}


@pytest.mark.parametrize(
    ("file", "imported", "contract"),
    [
        ("methods/averages.py", "lightning", FORMULAS),
        ("report/markdown.py", "fmerge.data", LAYERS),
        ("system/signals.py", "fmerge.store", LAYERS),
    ],
)
def test_a_planted_import_breaks_its_contract(tree, file, imported, contract):
    planted = tree / "fmerge" / file
    planted.write_text(planted.read_text() + f"\nimport {imported}\n")
    found, printed = outcomes(tree)
    assert found.pop(contract) == "BROKEN" and set(found.values()) == {"KEPT"}
    importer = "fmerge." + file.removesuffix(".py").replace("/", ".")
    assert f"{importer} -> {imported}" in printed


def test_a_room_that_no_layer_names_breaks_the_layers(tree):
    (tree / "fmerge" / "utils").mkdir()
    (tree / "fmerge" / "utils" / "__init__.py").touch()
    done = lint(tree)
    assert done.returncode != 0 and "utils" in done.stdout
