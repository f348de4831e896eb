"""One trial: a merge that is made and scored, whatever proposed it."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from lightning.pytorch import Trainer

from fmerge.errors import UserError
from fmerge.params import Params
from fmerge.search import Search, Trial
from fmerge.search.objective import Scores
from fmerge.search.portfolio import PortfolioSearch

Score = Callable[[Params], Scores]
"""From merged body tensors to what they scored."""


def attempt(
    index: int,
    coefficients: Mapping[str, float],
    merge: Callable[[Mapping[str, float]], Params],
    score: Score,
    stage: str = "",
    method: str = "",
) -> Trial:
    """Makes a merge and scores it.

    Args:
        index: The trial's index.
        coefficients: What the merge is assembled from, if from coefficients.
        merge: Makes the body of the coefficients.
        score: Scores it, on all processes.
        stage: The stage that makes the trial; empty for the search.
        method: The method, where a search chooses among several.

    Returns:
        The trial; it has failed where the body cannot be made or scored, or an objective is not
        finite.
    """
    made = partial(Trial, index, coefficients, stage=stage, method=method)
    try:
        scores = score(merge(coefficients))
    # these coefficients cannot be merged or scored; others may well be
    except (ValueError, UserError, MemoryError, torch.OutOfMemoryError) as error:
        return made(status="failed", reason=str(error))
    metrics, objective = scores.metrics, scores.objective
    if objective is None:
        return made(reason="built without data to score it on")
    for value in (objective, *scores.objectives.values()):
        if not math.isfinite(value):
            return made(metrics=metrics, status="failed", reason=f"the objective is {value}")
    return made(
        objective=objective,
        metrics=metrics,
        status="ok" if scores.partial is None else "stopped",
        error=scores.error,
        errors=scores.errors,
        partial=scores.partial,
        objectives=scores.objectives,
        objective_errors=scores.objective_errors,
    )


def proposed(trainer: Trainer, search: Search) -> tuple[Mapping[str, float], str]:
    """Asks a search in the first process: Ax differs in the last digits between processes.

    Args:
        trainer: The Trainer, whose strategy broadcasts.
        search: The search.

    Returns:
        Coefficients, and their method where the search chooses among several; no coefficients
        where it has ended.
    """
    asks = trainer.is_global_zero and not search.ended
    point = trainer.strategy.broadcast(search.ask() if asks else {})
    if isinstance(search, PortfolioSearch):
        search.method = trainer.strategy.broadcast(search.method)
    return point, search.method
