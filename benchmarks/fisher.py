r"""Time, peak memory and correctness of Fishers, against other ways to compute them.

Run:  python benchmarks/fisher.py [--models minilm t5] [--rounds 7] [--threads 2] [--no-memory]
On a GPU, with and without the kernel:
      python benchmarks/fisher.py --device cuda --precision bf16-mixed \
          --models minilm t5 t5-base --output benchmarks/results/cuda-bf16.md

opacus and BackPACK are included if they are installed:
      pip install --no-deps opacus backpack-for-pytorch opt_einsum einops unfoldNd

All contestants alternate in one process, so that other load on the machine affects all of them.
Peak memory is measured in a separate process for each: the highest resident size during two
batches minus that before them, so it includes the sums, gradients and activations. On a GPU it is
the highest allocated size instead, without the sums, and the clock is read after the
device has finished.
"""

import argparse
import copy
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import CASES, FEW, Case, Settings, make
from contestants import Contestant, Fisher, contestants, loop
from rich.console import Console
from rich.table import Table

from fmerge.store import write_text

PLAIN = "forward + backward"
HEADINGS = ("ms/example", "spread", "of plain's speed", "by CPU time", "peak MiB", "error")


@dataclass
class Measured:
    """One table: a contestant's name, then one cell for each heading."""

    title: str
    rows: list[list[str]]

    def printed(self) -> Table:
        """Formats the table for a terminal."""
        result = Table("", title=self.title)
        for heading in HEADINGS:
            result.add_column(heading, justify="right")
        for row in self.rows:
            result.add_row(*row)
        return result

    def markdown(self) -> str:
        """Formats the table for a file."""
        lines = [["", *HEADINGS], ["---", *["---:"] * len(HEADINGS)], *self.rows]
        cells = (
            "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines
        )
        return f"## {self.title}\n\n" + "\n".join(cells) + "\n"


def error(found: Fisher, expected: Fisher) -> float:
    """‖found − expected‖₁ / ‖expected‖₁ over all parameters."""
    difference = sum(float((found[k].double() - expected[k]).abs().sum()) for k in expected)
    return difference / sum(float(value.sum()) for value in expected.values())


def errors(case: Case, found: dict[str, Contestant], settings: Settings) -> dict[str, str]:
    """Compares the contestants, in their precision, with a float64 loop, on a few examples."""
    wide = copy.deepcopy(case.model).double()
    few, truths, cells = case.few(), {}, {}
    for name, contestant in list(found.items()):
        kind = "exact" if "exact" in name else "empirical"
        if kind not in truths and contestant.compared:
            truths[kind] = loop(wide, case.build(wide), few, kind)
        try:
            with settings.autocast():
                result = contestant.run(few)
            compared = contestant.compared and result is not None
            cells[name] = f"{error(result, truths[kind]):.0e}" if compared and result else "-"
        except Exception as reason:  # a row of the table says which contestant cannot do it
            cells[name] = f"{type(reason).__name__}: {str(reason).strip().splitlines()[0][:60]}"
            del found[name]
    return cells


def times(
    case: Case, found: dict[str, Contestant], rounds: int, settings: Settings
) -> dict[str, list[tuple[float, float]]]:
    """Alternates the contestants; returns seconds per example, of wall-clock and of CPU time."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, contestant in found.items():
            if contestant.few and turn > max(2, rounds // 3):
                continue
            batch = case.few() if contestant.few else case.batch
            start = time.perf_counter(), time.process_time()
            with settings.autocast():
                contestant.run(batch)
            wait(settings)
            if turn:  # the first turn warms up, and is where a kind of batch is checked
                ends, n = (time.perf_counter(), time.process_time()), len(batch["labels"])
                taken[name].append(((ends[0] - start[0]) / n, (ends[1] - start[1]) / n))
    return taken


def wait(settings: Settings) -> None:
    """Waits until the device has finished."""
    if settings.device == "cuda":
        torch.cuda.synchronize()


def peak(key: str, name: str, threads: int, settings: Settings) -> float:
    """Runs one contestant alone: highest size of memory minus that at the start, in MiB."""
    torch.set_num_threads(threads)
    case = make(key, settings)
    contestant = contestants(case)[name]
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the highest resident size
    before = status("VmRSS")
    run_twice(contestant, case, settings)
    return (status("VmHWM") - before) / 1024


def peak_on_gpu(contestant: Contestant, case: Case, settings: Settings) -> float:
    """Runs one contestant: highest allocated size minus that at the start, in MiB."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_twice(contestant, case, settings)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def run_twice(contestant: Contestant, case: Case, settings: Settings) -> None:
    """Runs a contestant on two batches."""
    for _ in range(2):
        with settings.autocast():
            contestant.run(case.few() if contestant.few else case.batch)


def status(field: str) -> int:
    """Reads a size in KiB of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def measure(
    key: str, rounds: int, memory: bool, settings: Settings, only: Sequence[str] = ()
) -> Measured:
    """Measures one case: all contestants, or a step and those that have one of some words."""
    case = make(key, settings)
    found = {
        name: contestant
        for name, contestant in contestants(case).items()
        if not only or name == PLAIN or any(word in name for word in only)
    }
    cells = errors(case, found, settings)
    taken = times(case, found, rounds, settings)
    threads = torch.get_num_threads()
    device = torch.cuda.get_device_name() if settings.device == "cuda" else f"{threads} threads"
    rows = []
    plain = [statistics.median(column) for column in zip(*taken[PLAIN], strict=True)]
    for name, cell in cells.items():
        if name not in found:
            rows.append([name, *"-----", cell])
            continue
        clock, processors = (list(column) for column in zip(*taken[name], strict=True))
        medians = statistics.median(clock), statistics.median(processors)
        digits = 3 if settings.device == "cuda" else 1
        spread = " - ".join(f"{1e3 * end(clock):.{digits}f}" for end in (min, max))
        ratios = [f"{base / median:.2f}" for base, median in zip(plain, medians, strict=True)]
        size = "-"
        if memory:
            if settings.device == "cuda":
                highest = peak_on_gpu(found[name], case, settings)
            else:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    highest = pool.apply(peak, (key, name, threads, settings))
            size = f"{highest:.0f}"
            size += f" ({FEW} at once)" if found[name].few else ""
        rows.append([name, f"{1e3 * medians[0]:.{digits}f}", spread, *ratios, size, cell])
    return Measured(f"{case.name}, {settings.precision}, {device}, {rounds} rounds", rows)


def main() -> None:
    """Prints one table per model, and writes them to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=["minilm", "t5"])
    parser.add_argument("--only", nargs="+", default=[], help="words of contestants' names")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--batch", type=int, help="examples; by default each model's own")
    parser.add_argument("--tokens", type=int, help="tokens of each; by default each model's own")
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here")
    torch.set_num_threads(arguments.threads)
    settings = Settings(arguments.device, arguments.precision, arguments.batch, arguments.tokens)
    command = " ".join(["python benchmarks/fisher.py", *sys.argv[1:]])
    text = f"`{command}`, Python {platform.python_version()}, torch {torch.__version__}\n"
    for key in arguments.models:
        measured = measure(key, arguments.rounds, not arguments.no_memory, settings, arguments.only)
        Console(width=130).print(measured.printed())
        text += f"\n{measured.markdown()}"
        if arguments.output is not None:  # after every model, so that a failure loses nothing
            write_text(arguments.output, text)


if __name__ == "__main__":
    main()
