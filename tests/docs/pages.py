"""The pages of the documentation as tests read them: blocks, files and commands that are run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from fmerge.cli.app import main

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    """The text of a page: the README, or a file of docs/."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """All blocks of a language on a page, in its order."""
    return re.findall(rf"```{language}\n(.*?)```", page(name), flags=re.DOTALL)


def block(name: str, language: str, containing: str) -> str:
    """The first of them with a text."""
    return next(text for text in blocks(name, language) if containing in text)


def run(command: str, *more: str) -> None:
    """Runs a command of fmerge in this process, with more options."""
    program, *arguments = shlex.split(command.replace("\\\n", " "), comments=True)
    assert program == "fmerge"
    main([*arguments, *more])


def files(text: str) -> dict[str, str]:
    """The page's files: blocks whose first line is a comment with their name."""
    named = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, flags=re.DOTALL)
    return dict(named)


def commands(text: str) -> list[list[str]]:
    """The commands of the page's shell blocks, split into words."""
    shell = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(shell).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


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
