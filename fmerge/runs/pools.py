"""How the trials of a merge's search are scored, and where they are made."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from fmerge.errors import UserError, shortened
from fmerge.merging.assembler import Assembler
from fmerge.merging.assemblers import Assemblers
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.merging.pool import InProcess, Pool
from fmerge.merging.racing import Race
from fmerge.merging.trials import Score
from fmerge.runs.clock import Clock, timed
from fmerge.runs.ray_pool import RayPool
from fmerge.search import Search, SearchSpace
from fmerge.search.objective import Objective
from fmerge.system.ray_session import check_ray, free_shares, ray_session

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


@contextmanager
def pool_of(
    run: "MergeRun",
    optimizer: MergeOptimizer,
    search: Search,
    goal: Objective,
    assembler: Assemblers,
    clock: Clock,
) -> Iterator[Pool]:
    """Makes what makes the trials of a search, for the time of a block.

    Args:
        run: The merge.
        optimizer: Its options.
        search: The search, with the trials of an interrupted run.
        goal: What is maximised.
        assembler: Assembles the merges.
        clock: Takes the time of each trial.

    Yields:
        The pool.
    """
    left = search.budget - len(search.history)
    if optimizer.parallel is None or search.finished or left == 1:
        score = timed(_scoring(run, optimizer, search, goal, assembler), search, clock)
        yield InProcess(assembler, score)
        return
    with ray_session(optimizer.ray_address) as ray:
        pool = _ray_pool(ray, run, optimizer.parallel, (goal, search.space, assembler.of("")))
        pool.count, pool.lap = min(pool.count, left), partial(clock.lap, "search")
        try:
            yield pool
        finally:
            pool.close()


def check_parallel(optimizer: MergeOptimizer, trainer: Trainer) -> None:
    """Checks, before models are read, whether trials can be made side by side.

    Args:
        optimizer: Its options.
        trainer: The Trainer.

    Raises:
        UserError: If they cannot, or the cluster does not answer.
    """
    if optimizer.parallel is None:
        if optimizer.ray_address is not None:
            raise UserError(
                "--optimizer.ray_address: is of trials side by side; give --optimizer.parallel, "
                "their number, or leave it out"
            )
        return
    if trainer.world_size > 1:
        raise UserError(
            f"--optimizer.parallel: gives each trial one device, but the Trainer has "
            f"{trainer.world_size}; add --trainer.devices 1"
        )
    if not isinstance(trainer.accelerator, CPUAccelerator | CUDAAccelerator):
        raise UserError(
            f"--optimizer.parallel: is for CPUs and GPUs, but the Trainer has "
            f"{type(trainer.accelerator).__name__}; add --trainer.accelerator cpu"
        )
    check_ray(optimizer.ray_address)


def _ray_pool(
    ray: Any, run: "MergeRun", parallel: int, merge: tuple[Objective, SearchSpace, Assembler]
) -> RayPool:
    from fmerge.runs.ray_worker import RemoteJob, TrialWorker

    device = "GPU" if isinstance(run.trainer.accelerator, CUDAAccelerator) else "CPU"
    threads = free_shares(ray, "CPU", parallel)
    if free_shares(ray, device, parallel) < 1:
        found = sum(int(one["Resources"].get(device, 0)) for one in ray.nodes() if one["Alive"])
        raise UserError(
            f"--optimizer.parallel: is {parallel}, but there are {found} {device}s to make trials "
            "on; give at most that"
        )
    job, numbers = RemoteJob.of(run, *merge, threads=max(threads, 1))
    try:
        state = [ray.put(job), ray.put(numbers)]
    except (TypeError, AttributeError, NotImplementedError, pickle.PicklingError) as error:
        raise UserError(
            "--optimizer.parallel: the model or the data cannot be sent to another process: "
            f"{shortened(error, 200)}; leave it out"
        ) from error
    options = {"num_cpus": threads, "num_gpus": int(device == "GPU"), "max_restarts": 0}
    worker = ray.remote(**options)(TrialWorker)
    return RayPool(ray=ray, spawn=worker.remote, state=state, count=parallel)


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
