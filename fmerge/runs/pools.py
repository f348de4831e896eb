"""How the trials of a merge's search are scored, and where they are made."""

from typing import TYPE_CHECKING

from fmerge.merging.assemblers import Assemblers
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.merging.pool import InProcess, Pool
from fmerge.merging.racing import Race
from fmerge.merging.trials import Score
from fmerge.runs.clock import Clock, timed
from fmerge.search import Search
from fmerge.search.objective import Objective

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


def pool_of(
    run: "MergeRun",
    optimizer: MergeOptimizer,
    search: Search,
    goal: Objective,
    assembler: Assemblers,
    clock: Clock,
) -> Pool:
    """Makes what makes the trials of a search.

    Args:
        run: The merge.
        optimizer: Its options.
        search: The search, with the trials of an interrupted run.
        goal: What is maximised.
        assembler: Assembles the merges.
        clock: Takes the time of each trial.

    Returns:
        The pool.
    """
    return InProcess(
        assembler, timed(_scoring(run, optimizer, search, goal, assembler), search, clock)
    )


def _scoring(
    run: "MergeRun",
    optimizer: MergeOptimizer,
    search: Search,
    goal: Objective,
    assembler: Assemblers,
) -> Score:
    if not optimizer.racing:
        return lambda body: run.validate(body, goal)
    race = Race(run.evaluator, run.module, search, goal, run.ensemble.tasks, run.live)
    race.recall(assembler.of(""))
    return race.score
