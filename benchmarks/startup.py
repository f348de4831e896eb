"""Start-up costs: ``--help`` and ``import fmerge``, compared with importing Lightning's CLI.

    python benchmarks/startup.py [--rounds 5]

A process imports Lightning's command line, then runs the command, and says what processor time
the command took: both parts of the ratio come from one process, since on a shared machine the
import alone varies by a third from one process to the next, many times what is to be measured.
Medians over the rounds are printed. Byte code is cached, as in an installed package.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = ("fit", "fisher", "merge", "validate", "test")
# prints the seconds of the import and of what the arguments run after it
SPLIT = f"""
import io, runpy, sys, time
import lightning.pytorch.cli
imported = time.process_time()
shown, sys.stdout = sys.stdout, io.StringIO()
sys.argv = [{str(ROOT / "cli.py")!r}, *sys.argv[1:]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
print(imported, time.process_time() - imported, file=shown)
"""
FMERGE = """
import time
started = time.process_time()
import fmerge
print(started, time.process_time() - started)
"""


def costs(code: str, *arguments: str) -> tuple[float, float]:
    """Measures the two parts of a process of Python.

    Args:
        code: What it runs; it prints the seconds of either part.
        arguments: Its arguments.

    Returns:
        The processor time of the first part and of the second, in seconds.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    first, second = map(float, ran.stdout.split())
    return first, second


def main() -> None:
    """Prints what ``import fmerge`` costs, and every help's ratio to Lightning's import."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    commands = {"fmerge --help": ["--help"]}
    commands |= {f"fmerge {one} --help": [one, "--help"] for one in COMMANDS}
    for arguments in commands.values():  # fills the caches
        costs(SPLIT, *arguments)
    runs = [{name: costs(SPLIT, *one) for name, one in commands.items()} for _ in range(rounds)]
    imported = statistics.median(costs(FMERGE)[1] for _ in range(rounds))
    print("| command | Lightning's import, seconds | the rest | ratio |\n|---|---|---|---|")
    print(f"| `import fmerge` | | {imported:.3f} | |")
    for name in commands:
        base = statistics.median(run[name][0] for run in runs)
        rest = statistics.median(run[name][1] for run in runs)
        ratio = statistics.median(sum(run[name]) / run[name][0] for run in runs)
        print(f"| `{name}` | {base:.2f} | {rest:.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
