"""Runs the command line in this process, and what most commands of the tests share."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from fmerge.cli.app import main
from tests import tiny

ROOT = Path(__file__).parents[2]


def data_config(zoo, folder: Path, *tasks: str) -> str:
    """A configuration of the data of some tasks, or of all."""
    names = tasks or tuple(zoo.tasks)
    config = {
        "data": {
            "batch_size": 4,
            "tasks": {
                task: {
                    "class_path": "TextFiles",
                    "init_args": {**zoo.tasks[task], "labels": tiny.LABELS[task]},
                }
                for task in names
            },
        },
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    path = folder / f"data_{'_'.join(names)}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def experts(zoo) -> list[str]:
    return [f"--experts.{task}={path}" for task, path in zoo.experts.items()]


def fails(capsys, *args: str) -> str:
    """Runs a command that must end with exit code 2 and one line; returns the line."""
    capsys.readouterr()
    try:
        main([str(arg) for arg in args])
    except SystemExit as end:
        assert end.code == 2, f"exit code {end.code}"
    else:
        raise AssertionError("the command succeeded")
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("fmerge: error: "), captured.err
    assert "Traceback" not in captured.out
    return lines[0]


def in_process(*args: str, env: dict[str, str] | None = None) -> str:
    """Runs ``python cli.py`` in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
