"""Start-up costs: ``--help`` and ``import fmerge``, compared with importing Lightning's CLI.

    python benchmarks/startup.py [--rounds 7]

Each round runs every command once, in turn, so that other load on the machine affects all of
them. A cost is the user and system time of the process; each command's minimum is reported. Byte
code is cached, as in an installed package.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIGHTNING = "import lightning.pytorch.cli"
COMMANDS = ("fit", "fisher", "merge", "validate", "test")


def cost(arguments: list[str]) -> float:
    """Measures a process of Python.

    Args:
        arguments: The arguments of Python.

    Returns:
        Its user and system time, in seconds.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = os.times()
    subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def main() -> None:
    """Prints every command's seconds, and their ratio to Lightning's import."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    script = str(ROOT / "cli.py")
    commands = {
        "python": ["-c", ""],
        "import fmerge": ["-c", "import fmerge"],
        LIGHTNING: ["-c", LIGHTNING],
        "fmerge --help": [script, "--help"],
        **{f"fmerge {one} --help": [script, one, "--help"] for one in COMMANDS},
    }
    for arguments in commands.values():  # fills the caches
        cost(arguments)
    runs = [{name: cost(one) for name, one in commands.items()} for _ in range(rounds)]
    least = {name: min(run[name] for run in runs) for name in commands}
    print("| command | seconds | of Lightning's import |\n|---|---|---|")
    for name, seconds in least.items():
        print(f"| `{name}` | {seconds:.3f} | {seconds / least[LIGHTNING]:.3f} |")


if __name__ == "__main__":
    main()
