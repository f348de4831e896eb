"""Compares the numbers of two revisions: trials and merged weights, byte by byte.

    python benchmarks/same_numbers.py REVISION

Runs three searches at a fixed seed on tiny models, by the code of this tree and by that of the
revision, and compares ``trials.jsonl`` and every merged ``model.safetensors``. The newer run may
log more trials at the end, such as the plain average's. Exits with 1 if a byte differs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MERGES = {
    "TaskArithmetic, AxSearch": ["--method", "TaskArithmetic", "--optimizer.search", "AxSearch",
                                 "--optimizer.search.trials", "12",
                                 "--optimizer.search.initial_trials", "8"],
    "FisherMerge, Dirichlet": ["--method", "FisherMerge", "--optimizer.search", "Dirichlet",
                               "--optimizer.search.draws", "8",
                               "--optimizer.objective", "worst_retained"],
    "DFMerge on a curve, Sobol by group": ["--method", "DFMerge", "--optimizer.search", "Sobol",
                                           "--optimizer.search.trials", "8",
                                           "--fisher.split", "validation",
                                           "--fisher.examples", "8", "--fisher.curve", "3"],
}  # fmt: skip
TRIALS = "trials.jsonl"
_MAKE = """
import sys
from pathlib import Path
from tests import tiny
from tests.cli.run import data_config
folder = Path(sys.argv[1])
data_config(tiny.make_zoo(folder), folder)
"""


def run(tree: Path, *args: str) -> None:
    """Runs Python on a tree's code.

    Args:
        tree: A checkout.
        args: Python's arguments.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *args]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")


def merge(tree: Path, zoo: Path, output: Path, options: list[str]) -> dict[str, bytes]:
    """Merges the tiny experts by a tree's code.

    Args:
        tree: A checkout.
        zoo: The folder that ``_MAKE`` wrote.
        output: The run's folder.
        options: Method and search.

    Returns:
        The bytes of the trials and of the merged weights, by their path in the run's folder.
    """
    experts = [
        f"--experts.{one.name.removeprefix('expert_')}={one}" for one in zoo.glob("expert_*")
    ]
    config = next(zoo.glob("data_*.yaml"))
    run(tree, "cli.py", "merge", "--config", str(config), *experts, *options,
        "--base", str(zoo / "base"), "--output", str(output))  # fmt: skip
    files = [output / TRIALS, *sorted(output.glob("merged/**/model.safetensors"))]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def main(revision: str) -> int:
    """Compares this tree with a revision.

    Args:
        revision: A revision, as git names it.

    Returns:
        1 if a byte differs.
    """
    differs = 0
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), Path(name) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", str(before), revision],
                       cwd=ROOT, check=True, capture_output=True)  # fmt: skip
        try:
            zoo = folder / "zoo"
            zoo.mkdir()
            run(ROOT, "-c", _MAKE, str(zoo))
            for number, (title, options) in enumerate(MERGES.items()):
                old = merge(before, zoo, folder / f"old{number}", options)
                new = merge(ROOT, zoo, folder / f"new{number}", options)
                more = new[TRIALS].removeprefix(old[TRIALS]).count(b"\n")
                if new[TRIALS].startswith(old[TRIALS]):
                    new[TRIALS] = old[TRIALS]
                wrong = [path for path in old | new if old.get(path) != new.get(path)]
                differs |= bool(wrong)
                told = f"differ: {', '.join(wrong)}" if wrong else "equal, byte by byte"
                print(f"{title}: {len(new)} files {told}; {more} trials more at the end")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT)
    return differs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("revision", help="what to compare with, such as HEAD~1 or a tag")
    sys.exit(main(parser.parse_args().revision))
