"""What was moved is named at its former path."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from fmerge.system.former_paths import FORMER


@pytest.mark.parametrize("former", FORMER)
def test_a_former_path_names_the_new_one(former):
    with pytest.raises(ModuleNotFoundError, match=f"it is {FORMER[former]} now"):
        import_module(former)
    assert find_spec(FORMER[former]) is not None


def test_a_module_that_never_was_is_not_found_as_ever():
    with pytest.raises(ModuleNotFoundError, match="^No module named 'fmerge.nowhere'$"):
        import_module("fmerge.nowhere")


def test_a_former_command_names_the_new_one():
    done = subprocess.run(
        [sys.executable, "-m", "fmerge.score_table", "runs"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "it is fmerge.report.score_table now" in done.stderr.splitlines()[-1]
