"""Time and peak memory of a trial's merge, against torch.add and a plain loop.

Run:  python benchmarks/assembly.py [--models minilm t5-base] [--threads 1 2] [--rounds 9]

Six experts, their Fishers and a base of random float32 numbers, in the shapes of the model. Three
ways alternate in one process, so that other load on the machine affects all of them:

- fmerge: `Assembler.assemble` with new coefficients, as in every trial: the norms of the
  Fishers are cached after the first, and the result is checked for NaN and overwrites the last one.
- torch.add: `torch.add(x, y, out=z)` over x and y among the same inputs, and one output, until
  it has moved as many bytes as the formula must: each input read once, the result written once.
- the loop: the formula as dict comprehensions over the whole model, out of place, without checks.

Peak memory is the highest resident size during a first merge minus that before: 1 result is the
minimum. DFMerge gets its Fishers, as after a pass over data; with a curve it interpolates them
between two nodes that are among the six, so that it reads as much. The error is the largest
difference from the loop, relative to the largest entry.
"""

import argparse
import ctypes
import functools
import operator
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path

import torch
from cases import CASES
from fisher import status
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fmerge.merging.assembler import Assembler
from fmerge.methods import (
    Average,
    DFMerge,
    FisherMerge,
    Isotropic,
    MergeMethod,
    TaskArithmetic,
)
from fmerge.params import check_finite, empty_like, logarithms
from fmerge.store import write_text

EXPERTS = 6
HEADINGS = (
    *("ms", "spread", "of torch.add's time", "by CPU time"),
    *("loop's ms", "times faster", "peak, results", "error"),
)
Model = dict[str, Tensor]
Loop = Callable[[Model, list[Model], list[Model], list[float]], Model]


def total(tensors: Iterable[Tensor]) -> Tensor:
    """Adds the terms in order."""
    return functools.reduce(operator.add, tensors)


def average(base: Model, experts: list[Model], fishers: list[Model], lam: list[float]) -> Model:
    """Σ θ / M."""
    return {k: total(e[k] for e in experts) / len(experts) for k in base}


def isotropic(base: Model, experts: list[Model], fishers: list[Model], lam: list[float]) -> Model:
    """Σ λθ / Σ λ."""
    return {k: total(c * e[k] for c, e in zip(lam, experts, strict=True)) / sum(lam) for k in base}


def arithmetic(base: Model, experts: list[Model], fishers: list[Model], lam: list[float]) -> Model:
    """θ₀ + Σ λτ."""
    vectors = [{k: e[k] - base[k] for k in base} for e in experts]
    return {k: base[k] + total(c * t[k] for c, t in zip(lam, vectors, strict=True)) for k in base}


def weighted(base: Model, experts: list[Model], fishers: list[Model], lam: list[float]) -> Model:
    """Σ λFθ / Σ λF with λ/‖F‖ for λ."""
    norms = [torch.stack([f[k].norm() for k in base]).norm() for f in fishers]
    lam = [float(c / norm) for c, norm in zip(lam, norms, strict=True)]
    rows = list(zip(lam, fishers, experts, strict=True))
    top = {k: total(c * f[k] * e[k] for c, f, e in rows) for k in base}
    bottom = {k: total(c * f[k] for c, f, _ in rows) for k in base}
    return {k: top[k] / bottom[k] for k in base}


def dynamic(base: Model, experts: list[Model], fishers: list[Model], lam: list[float]) -> Model:
    """θ₀ + M Σ Fλτ / Σ F."""
    rows = list(zip(lam, fishers, experts, strict=True))
    top = {k: total((f[k] + 1e-12) * c * (e[k] - base[k]) for c, f, e in rows) for k in base}
    bottom = {k: total(f[k] + 1e-12 for f in fishers) for k in base}
    return {k: base[k] + len(experts) * top[k] / bottom[k] for k in base}


FORMULAS: dict[str, tuple[MergeMethod, Loop]] = {
    "Average": (Average(), average),
    "Isotropic": (Isotropic(), isotropic),
    "TaskArithmetic": (TaskArithmetic(), arithmetic),
    "FisherMerge": (FisherMerge(floor=0.0), weighted),
    "DFMerge": (DFMerge(), dynamic),
    "DFMerge, curve": (DFMerge(), dynamic),
}


class Inputs:
    """Base, experts and Fishers of a model's shapes: each one flat tensor, with views by name."""

    def __init__(self, key: str) -> None:
        with torch.device("meta"):
            model = CASES[key]().model
        self.shapes = {name: one.shape for name, one in model.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())
        generator = torch.Generator().manual_seed(0)
        self.flat = [torch.empty(self.size).normal_(generator=generator)]
        for _ in range(EXPERTS):  # a fine-tuned model lies near its base
            expert = torch.empty(self.size).normal_(0, 0.01, generator=generator)
            self.flat.append(expert.add_(self.flat[0]))
        for _ in range(EXPERTS):
            fisher = torch.empty(self.size).normal_(0, 1e-3, generator=generator)
            self.flat.append(fisher.square_())
        base, *others = (self.named(one) for one in self.flat)
        self.base, self.experts, self.fishers = base, others[:EXPERTS], others[EXPERTS:]
        self.output = torch.zeros(self.size)

    @cached_property
    def logs(self) -> list[Model]:
        """The logarithms of the Fishers, as a curve stores them."""
        return [logarithms(one) for one in self.fishers]

    def named(self, flat: Tensor) -> Model:
        """Cuts a flat tensor into the model's."""
        chunks = flat.split([shape.numel() for shape in self.shapes.values()])
        rows = zip(self.shapes.items(), chunks, strict=True)
        return {name: chunk.view(shape) for (name, shape), chunk in rows}

    def assembling(self, name: str) -> Callable[[list[float]], Model]:
        """Makes the assembler of the trials."""
        method, fishers = FORMULAS[name][0], self.fishers
        if isinstance(method, DFMerge) and "curve" not in name:  # as after Fisher passes
            out = empty_like(self.base)

            def merge(lam: list[float]) -> Model:
                method.merge(self.base, self.experts, lam, fishers, out=out)
                check_finite(out, name)
                return out

            return merge
        names = [f"e{m}" for m in range(EXPERTS)]
        curved = "curve" in name
        ends = iter(
            [self.logs[m - low] for m in range(EXPERTS) for low in (0, 1)] if curved else ()
        )
        assembler = Assembler(
            method,
            self.base,
            dict(zip(names, self.experts, strict=True)),
            lambda expert, body: {},  # the stored nodes are used instead
            None if curved or method.statistic is None else dict(zip(names, fishers, strict=True)),
            curve_nodes=2 if curved else 0,
            keep=lambda node: next(ends),
        )
        return lambda lam: assembler.assemble(dict(zip(names, lam, strict=True)))

    def units(self, method: MergeMethod) -> int:
        """Counts the models that a merge has to read and write."""
        return EXPERTS * (1 if method.statistic is None else 2) + method.needs_base + 1

    def stream(self, units: int) -> None:
        """Moves as many bytes through torch.add."""
        sources = self.flat * 2
        for i in range(units // 3):
            torch.add(sources[2 * i], sources[2 * i + 1], out=self.output)
        if rest := self.size * (units % 3) // 3:
            torch.add(sources[-1][:rest], sources[-2][:rest], out=self.output[:rest])


def peak(run: Callable[[], object]) -> int:
    """Runs once; returns the highest resident size minus that at the start, in bytes."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory must not hide new allocations
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the highest resident size
    before = status("VmRSS")
    kept = run()
    highest = status("VmHWM")
    del kept
    return 1024 * (highest - before)


def error(found: Model, expected: Model) -> float:
    """Compares a merge with the loop's."""
    return max(float((found[k] - one).abs().max() / one.abs().max()) for k, one in expected.items())


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Times one call, by the clock and of processors."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(inputs: Inputs, name: str, rounds: int) -> list[str]:
    """Fills one row."""
    method, loop = FORMULAS[name]
    arguments = inputs.base, inputs.experts, inputs.fishers
    generator = torch.Generator().manual_seed(1)
    first: list[float] = torch.rand(EXPERTS, generator=generator).tolist()
    if "curve" in name:
        _ = inputs.logs  # computed before the measurement
    size = peak(lambda: inputs.assembling(name)(first))
    assemble, units = inputs.assembling(name), inputs.units(method)
    difference = error(assemble(first), loop(*arguments, first)) if "curve" not in name else None
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], "stream": [], "loop": []}
    for turn in range(rounds + 1):
        lam: list[float] = torch.rand(EXPERTS, generator=generator).tolist()
        ways: dict[str, Callable[[], object]] = {
            "ours": partial(assemble, lam),
            "stream": partial(inputs.stream, units),
            "loop": partial(loop, *arguments, lam),
        }
        for way, run in ways.items():
            if way == "loop" and turn > max(2, rounds // 3):
                continue
            spent = seconds(run)
            if turn:  # the first turn warms up
                taken[way].append(spent)
    median = {
        way: [statistics.median(column) for column in zip(*spent, strict=True)]
        for way, spent in taken.items()
    }
    ours, stream, slow = median.values()
    clock = [1e3 * spent[0] for spent in taken["ours"]]
    return [
        name,
        f"{1e3 * ours[0]:.1f}",
        f"{min(clock):.1f} - {max(clock):.1f}",
        *(f"{mine / other:.2f}" for mine, other in zip(ours, stream, strict=True)),
        f"{1e3 * slow[0]:.0f}",
        f"{slow[0] / ours[0]:.1f}",
        f"{size / inputs.output.nbytes:.2f}",
        "-" if difference is None else f"{difference:.0e}",
    ]


def table(title: str, rows: list[list[str]]) -> tuple[Table, str]:
    """Lays rows out for a terminal and for a file."""
    result = Table("", title=title)
    for heading in HEADINGS:
        result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(*row)
    lines = [["", *HEADINGS], ["---", *["---:"] * len(HEADINGS)], *rows]
    cells = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return result, f"\n## {title}\n\n{cells}\n"


def main() -> None:
    """Prints one table per model and number of threads, and writes them if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=["minilm"])
    parser.add_argument("--methods", nargs="+", choices=list(FORMULAS), default=list(FORMULAS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    arguments = parser.parse_args()
    command = " ".join(["python benchmarks/assembly.py", *sys.argv[1:]])
    text = f"`{command}`, Python {platform.python_version()}, torch {torch.__version__}\n"
    for key in arguments.models:
        inputs = Inputs(key)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            rows = [measure(inputs, name, arguments.rounds) for name in arguments.methods]
            title = (
                f"{key}: {EXPERTS} experts of {inputs.size / 1e6:.0f}M float32, {threads} threads, "
                f"{arguments.rounds} rounds"
            )
            printed, written = table(title, rows)
            Console(width=130).print(printed)
            text += written
            if arguments.output is not None:
                write_text(arguments.output, text)


if __name__ == "__main__":
    main()
