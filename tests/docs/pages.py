"""The code blocks of a page of the docs: files, and commands that are run in order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def files(page: str) -> dict[str, str]:
    """The page's files: blocks whose first line is a comment with their name."""
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", page, flags=re.DOTALL)
    return dict(blocks)


def commands(page: str) -> list[list[str]]:
    """The commands of the page's shell blocks, split into words."""
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def process(*command: str, folder: Path, path: str = "") -> str:
    """Runs Python in a folder; ``path`` is the PYTHONPATH that the page sets."""
    packages = os.pathsep.join(one for one in (path, str(ROOT)) if one)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": packages, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
