"""What ``Auto`` keeps of its experts, beside plain merges and the base trained as long.

Run:  python benchmarks/retained.py [--families topics fields] [--seeds 1 2 3 4 5] [--output FILE]

A seed sets the data's split, the training, the examples of statistics and the search. Rows are
computed seed by seed, the families in turn, and cached under runs/quality: a command that is
interrupted resumes, and prints the tables of the seeds that are complete.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from bench import Bench
from families import FAMILIES, FOLDER, expert, quiet_trainer
from intervals import detectable, difference, interval
from lightning.pytorch import seed_everything
from quality import INITIAL, PAPER, TRIALS, Entry, entries
from sections import write_section

from fmerge.data import MultiTask
from fmerge.evaluation.evaluator import mean
from fmerge.evaluation.head_refit import Refitter, Refitting
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import Auto, MergeMethod, TaskArithmetic
from fmerge.params import Params
from fmerge.report.scores import MERGE
from fmerge.search import AxSearch, Fixed, SearchSpace, Trial
from fmerge.store import write_text

BATCH = 16
"""Texts of a task in a step of training."""
STEPS = Auto().steps
TEXTS = 512
"""Training texts of a task, at most, that anything after the experts learns from."""
NOTHING = 1e-12
"""Of a task vector: far below the rounding of a weight. No merge is made of zeros alone."""
AUTO_TRIALS = len(Auto().methods)
"""Its race alone, to save time."""

EXPERTS, AVERAGE, BASE_HEADS = "experts", "plain average", "base, heads refitted"
FISHER = "FisherMerge"
DISTILLED, TUNED = "base, distilled on the same texts", "base, fine-tuned on the same examples"
FREE, LABELLED = "Auto, label-free", "Auto, with labels"

TRAINED: Mapping[str, Mapping[str, Any]] = {
    # a merge of no task vectors is the base, which is then polished
    DISTILLED: {"method": TaskArithmetic, "labels": "none", "polish_steps": STEPS},
    TUNED: {"method": TaskArithmetic, "polish_loss": "labels", "polish_steps": STEPS},
    FREE: {"method": Auto, "labels": "none"},
    LABELLED: {"method": Auto},
}
"""Row to what its merge is asked for."""

RIVALS = {
    FREE: (AVERAGE, FISHER, "RegMean", PAPER, DISTILLED, BASE_HEADS),
    LABELLED: (AVERAGE, FISHER, "RegMean", PAPER, DISTILLED, BASE_HEADS, TUNED),
}
"""Row to what it is compared with."""

ROWS = (
    *(EXPERTS, AVERAGE, FISHER, "RegMean", PAPER, BASE_HEADS),
    *(DISTILLED, TUNED, FREE, LABELLED),
)


class Seed:
    """The rows of one family at one seed; none is computed twice.

    Args:
        family: One of ``FAMILIES``.
        seed: The seed.
    """

    def __init__(self, family: str, seed: int) -> None:
        self.family, self.seed = family, seed

    def row(self, name: str) -> dict[str, float]:
        """Computes a row, unless it is cached.

        Args:
            name: One of ``ROWS``.

        Returns:
            Task name to test accuracy.
        """
        path = FOLDER / self.family / str(self.seed) / "retained" / f"{_file(name)}.json"
        if not path.exists():
            begun = time.perf_counter()
            found = self._merged(name) if name in TRAINED else self._plain(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(found))
            said = f"{self.family} {self.seed} {name}: {100 * mean(found):.1f}"
            print(f"{said}, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        read: dict[str, float] = json.loads(path.read_text())
        return read

    @cached_property
    def bench(self) -> Bench:
        """The experts and their data."""
        return Bench(self.family, self.seed)

    def _plain(self, name: str) -> dict[str, float]:
        bench = self.bench
        score, names = bench.evaluator.score, bench.ensemble.names
        if name == EXPERTS:
            found: dict[str, float] = {}
            for task in names:
                found |= score(bench.ensemble.bodies[task], "test", [task])
            return found
        if name == BASE_HEADS:
            settings = Refitting("end", examples=TEXTS)  # drawn as those of the training
            refitter = Refitter(bench.evaluator, settings, names)
            return refitter.score(bench.base, "test", refitter.fit(bench.base))
        return score(self._searched(entries(self.seed)[name]), "test", names)

    def _searched(self, entry: Entry) -> Params:
        bench = self.bench
        names = bench.ensemble.names
        assembler = bench.assembler(entry.method, entry.settings)
        search = AxSearch(TRIALS, INITIAL, seed=self.seed) if entry.searched else Fixed()
        search.start(SearchSpace(names, scale_invariant=entry.method.scale_invariant))
        while not search.finished:
            point = search.ask()
            if not entry.searched:  # a single trial needs no score
                return assembler.assemble(point)
            metrics = bench.evaluator.score(assembler.assemble(point), "validation", names)
            search.tell(Trial(len(search.history), point, mean(metrics), metrics))
        return assembler.assemble(search.best().coefficients)

    def _merged(self, name: str) -> dict[str, float]:
        tasks = FAMILIES[self.family].tasks
        experts = {task: str(expert(self.family, task, self.seed)) for task in tasks}
        seed_everything(self.seed, verbose=False)
        options = dict(TRAINED[name])
        method: MergeMethod = options.pop("method")()
        search = None
        if isinstance(method, Auto):
            search = AxSearch(AUTO_TRIALS, seed=self.seed)  # which gives the number of trials
        else:
            options["coefficients"] = dict.fromkeys(tasks, NOTHING)
        data = MultiTask({task: make(self.seed) for task, make in tasks.items()}, batch_size=BATCH)
        with tempfile.TemporaryDirectory() as folder:
            trainer = quiet_trainer(callbacks=[MergeOptimizer(search, examples=TEXTS)])
            report = trainer.merge(
                FAMILIES[self.family].start.module(),
                data,
                experts=experts,  # type: ignore[arg-type]
                base=str(FAMILIES[self.family].start.folder),
                method=method,
                output=Path(folder) / "run",
                baselines="experts",
                **options,
            )
        assert report is not None  # no dry run
        if isinstance(method, Auto):
            print(_stages(report.search.stages), file=sys.stderr, flush=True)
        (own,) = (row.scores for row in report.rows if row.name == MERGE)
        return dict(own)


def _file(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


def _stages(stages: Sequence[Any]) -> str:
    return "; ".join(
        f"{one.name} {one.trials} trials {one.seconds:.0f} s"
        + ("" if one.after is None else f" {100 * one.after:.1f}")
        for one in stages
    )


def table(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Lays out the means over seeds and the paired differences.

    Args:
        seeds: Row to scores by task, by seed.

    Returns:
        Markdown.
    """
    lines = ["| | accuracy | of the experts' |", "|---|---|---|"]
    values = {name: [100 * mean(seed[name]) for seed in seeds] for name in ROWS}
    for name in ROWS:
        shares = [
            100 * one / whole for one, whole in zip(values[name], values[EXPERTS], strict=True)
        ]
        kept = "" if name == EXPERTS else f"{interval(shares)}%"
        lines.append(f"| {name} | {interval(values[name])} | {kept} |")
    lines += ["", "| | minus | points | found with 80% power |", "|---|---|---|---|"]
    for name, rivals in RIVALS.items():
        for rival in rivals:
            own, other = values[name], values[rival]
            lines.append(
                f"| {name} | {rival} | {difference(own, other)} | {detectable(own, other)} |"
            )
    return "\n".join(lines)


def describe(name: str, seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Writes a section: what was measured, and how.

    Args:
        name: The family.
        seeds: Row to scores by task, by seed.

    Returns:
        Markdown.
    """
    family = FAMILIES[name]
    one = next(iter(family.tasks.values()))(0)
    sizes = {split: len(one.examples(split)) for split in ("train", "validation", "test")}
    return (
        f"{len(family.tasks)} tasks: {family.about}; {sizes['train']}, {sizes['validation']} and "
        f"{sizes['test']} texts a task to train, validate and test on. `Auto` races its "
        f"{AUTO_TRIALS} methods without a search after it, and makes {STEPS} steps of {BATCH} "
        f"texts a task, drawn from at most {TEXTS} of its training split. The trained "
        "bases learn from the same texts by the same learner for as many steps, and their best "
        f"check on the validation split is the row; heads are refitted on the same {TEXTS}. "
        "Label-free: no label is read before the test. FisherMerge, RegMean and DF-Merge are as in "
        "the sections on quality.\n\n"
        "Mean test accuracy over the tasks in %, mean and 95% interval (Student's t) over "
        f"{len(seeds)} seeds; differences are paired by seed. The last column is the true "
        "difference that so many seeds with this spread find, at the 5% level, in 80 of 100 "
        f"repetitions.\n\n{table(seeds)}"
    )


def main() -> None:
    """Computes missing rows, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--families", nargs="+", default=["topics", "fields"], choices=list(FAMILIES)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found: dict[str, list[Mapping[str, Mapping[str, float]]]] = {}
    for seed in arguments.seeds:
        for name in arguments.families:
            one = Seed(name, seed)
            row: Callable[[str], dict[str, float]] = partial(Seed.row, one)
            found.setdefault(name, []).append({title: row(title) for title in arguments.rows})
            if len(arguments.rows) == len(ROWS):
                text = describe(name, found[name])
                print(f"{name}, {len(found[name])} seeds\n\n{table(found[name])}\n", flush=True)
                if arguments.output:
                    write_section(arguments.output, f"Retained: {name}", text)


if __name__ == "__main__":
    main()
