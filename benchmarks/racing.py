"""Cost and savings of racing, on a simulated surface of a merge; no model is trained.

Run:  python benchmarks/racing.py [--repeats 8] [--jobs 2] [--output docs/results.md]

Four tasks. Example i of task t is right where A_t(λ) + d_i + g_i·(λ − ½) > 0, with normal d_i and
g_i, fixed through a search, so that merges close to each other give similar answers. A_t grows with
the task's own coefficient, up to 1, and falls with the others'. Coefficients of 0.5 give 56% right
answers, 0.3 gives 52%, whole task vectors 39%, the base 38%, and an expert on its own task 71%:
about the spread of the quickstart.
"""

import argparse
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from sections import write_section

from fmerge.data.blocks import stratified_blocks
from fmerge.search import AxSearch, RandomSearch, Search, SearchSpace, Trial
from fmerge.search.early_stopping import CHANCE, should_prune, standing, stopped_scores
from fmerge.search.objective import Objective, binomial_error

TASKS = ("a", "b", "c", "d")
GOAL = Objective()


class Made:
    """A validation split of every task, and fresh examples that estimate the true score.

    Args:
        seed: Seed of the examples.
        examples: Size of a task's validation split.
    """

    def __init__(self, seed: int, examples: int) -> None:
        generator = np.random.default_rng(seed)
        self.examples = examples
        self.own = generator.normal(size=(len(TASKS), examples + 20_000))
        self.slopes = 0.8 * generator.normal(size=(len(TASKS), examples + 20_000, len(TASKS)))

    def answers(self, point: Mapping[str, float]) -> np.ndarray:
        """Whether a merge gets each example right (tasks, examples)."""
        place = np.array([point[task] for task in TASKS])
        others = (place**2).sum() - place**2
        ability = -0.4 + 1.1 * (1 - (1 - place) ** 2) - 0.35 * others
        return ability[:, None] + self.own + self.slopes @ (place - 0.5) > 0


@dataclass(frozen=True)
class Outcome:
    """A finished search.

    Attributes:
        scored: Share of the examples of all trials that were scored.
        stopped: How many trials were stopped.
        found: The best trial's score on the validation split.
        true: Its score on fresh examples.
    """

    scored: float
    stopped: int
    found: float
    true: float


def search_on(
    made: Made, search: Search, racing: bool, chance: float = CHANCE, shares: tuple[float, ...] = ()
) -> Outcome:
    """Runs a search.

    Args:
        made: The examples.
        search: The search.
        racing: Whether trials are stopped.
        chance: The rule's level.
        shares: Sizes of the parts; as in fmerge if empty.

    Returns:
        The outcome.
    """
    search.start(SearchSpace(TASKS))
    zeros = [0] * made.examples
    blocks = stratified_blocks(zeros, shares=shares) if shares else stratified_blocks(zeros)
    order = [i for block in blocks for i in block]
    ends = np.cumsum([len(block) for block in blocks])[:-1]
    full: dict[int, dict[str, list[bool]]] = {}
    seen = 0
    while not search.finished:
        index, point = len(search.history), search.ask()
        rows = made.answers(point)[:, order]
        answers = {task: row.tolist() for task, row in zip(TASKS, rows, strict=True)}
        best = search.best() if full else None
        scores = None
        for end in ends if racing else ():
            if best is None:
                break
            known = full[best.index]
            stands = {task: standing(answers[task][:end], known[task]) for task in TASKS}
            if should_prune(GOAL, stands, best.metrics, len(ends), chance):
                scores = stopped_scores(GOAL, stands)
                seen += end
                break
        if scores is None:
            full[index] = answers
            metrics = {task: mean(answers[task]) for task in TASKS}
            errors = {task: binomial_error(metrics[task], made.examples) for task in TASKS}
            scores = GOAL.of(metrics, errors)
            seen += made.examples
        search.tell(
            Trial(
                index, point, scores.objective, scores.metrics,
                "ok" if scores.partial is None else "stopped",
                error=scores.error, errors=scores.errors, partial=scores.partial,
            )
        )  # fmt: skip
    best = search.best()
    true = made.answers(best.coefficients)[:, made.examples :].mean()
    stopped = sum(trial.status == "stopped" for trial in search.history)
    return Outcome(
        seen / made.examples / len(search.history), stopped, best.objective or 0.0, float(true)
    )


class Near(Search):
    """The starts, four random points, then normal steps from the best, which shorten."""

    budget = 60

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def ask(self) -> dict[str, float]:
        """Proposes the next point."""
        index = len(self.history)
        generator = np.random.default_rng([self.seed, index])
        starts = [*(np.full(4, one) for one in (0.25, 0.3, 0.5, 1.0)), *np.eye(4)]
        if index < len(starts):
            point = starts[index]
        elif index < 12:
            point = generator.random(4)
        else:
            best = np.array(list(self.best().coefficients.values()))
            point = np.clip(best + 0.2 * (1 - index / 80) * generator.normal(size=4), 0, 1)
        return dict(zip(TASKS, point.tolist(), strict=True))


SEARCHES: dict[str, Callable[[int], Search]] = {
    "AxSearch": lambda seed: AxSearch(60, seed=seed),
    "AxSearch, noise none": lambda seed: AxSearch(60, seed=seed, noise="none"),
    "AxSearch, noise binomial": lambda seed: AxSearch(60, seed=seed, noise="binomial"),
    "near the best": Near,
    "RandomSearch": lambda seed: RandomSearch(60, seed=seed),
}


def job(given: tuple[str, int, bool, int]) -> Outcome:
    """Runs one search of the table: its name, examples, whether it races, and seed."""
    torch.set_num_threads(1)
    name, examples, racing, seed = given
    return search_on(Made(1000 + seed, examples), SEARCHES[name](seed), racing)


def main() -> None:
    """Prints and writes one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--examples", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES), choices=list(SEARCHES))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    jobs = list(
        itertools.product(given.searches, given.examples, (True, False), range(given.repeats))
    )
    with ProcessPoolExecutor(given.jobs, get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(job, jobs), strict=True))
    lines = [
        "| search | examples a task | not scored | trials stopped | change of the best score, "
        "validation | on fresh examples |",
        "|---|---|---|---|---|---|",
    ]
    for name, examples in itertools.product(given.searches, given.examples):
        pairs = [
            [found[name, examples, racing, seed] for racing in (True, False)]
            for seed in range(given.repeats)
        ]
        saved = 1 - mean(one.scored for one, _ in pairs)
        stopped = mean(one.stopped for one, _ in pairs)
        changes = [
            _change([100 * (getattr(one, what) - getattr(other, what)) for one, other in pairs])
            for what in ("found", "true")
        ]
        lines.append(
            f"| {name} | {examples} | {saved:.0%} | {stopped:.0f} of 60 | {changes[0]} | "
            f"{changes[1]} |"
        )
    text = (
        f"Searches of 60 trials with and without racing, {given.repeats} pairs of one seed each; "
        "changes in points, ± their standard error.\n\n" + "\n".join(lines)
    )
    print(text)
    if given.output:
        write_section(given.output, "Racing", text)


def _change(values: list[float]) -> str:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean(values):+.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
