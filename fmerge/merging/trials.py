"""One trial: a merge that is made and scored, whatever proposed it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch import Trainer

from fmerge.errors import UserError
from fmerge.params import Params
from fmerge.search import Search, Trial
from fmerge.search.objective import Scores
from fmerge.search.portfolio import PortfolioSearch

_CLOSE = 1e-6
"""How far a proposal may be from that of another machine, whose last digits differ."""

Score = Callable[[Params], Scores]
"""From merged body tensors to what they scored."""


@dataclass(frozen=True)
class Proposal:
    """A trial that is to be made.

    Attributes:
        index: The trial's index.
        coefficients: What the merge is assembled from.
        method: The method, where the search chooses among several.
    """

    index: int
    coefficients: Mapping[str, float]
    method: str = ""


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


def proposed(trainer: Trainer, search: Search) -> list[Proposal]:
    """Asks a search in the first process: Ax differs in the last digits between processes.

    Args:
        trainer: The Trainer, whose strategy broadcasts.
        search: The search.

    Returns:
        The trials of the next batch, or what is left of the last one; none where it has ended.
    """
    asks = trainer.is_global_zero and not search.ended
    points = trainer.strategy.broadcast(search.propose() if asks else [])
    search.pending = list(points)
    if isinstance(search, PortfolioSearch):
        search.method = trainer.strategy.broadcast(search.method)
    begin = len(search.history)
    return [Proposal(begin + i, point, search.method) for i, point in enumerate(points)]


def told(trainer: Trainer, search: Search, trial: Trial) -> None:
    """Tells a search of a trial: the first process's its scores, the others' that there was one.

    Args:
        trainer: The Trainer.
        search: The search.
        trial: The first of the trials that it waits for.
    """
    if trainer.is_global_zero:
        search.tell(trial)
    else:
        Search.tell(search, trial)  # to count; they know no scores


def replayed(trainer: Trainer, search: Search, trials: Sequence[Trial]) -> None:
    """Tells a search of the trials of an interrupted run, on all processes.

    Args:
        trainer: The Trainer.
        search: A started search; what is left of the batch that the run was in becomes pending.
        trials: The trials.

    Raises:
        UserError: If the search does not propose them.
    """
    whole = len(trials)
    if whole < search.budget:
        whole -= whole % search.batch
    for trial in trials[:whole]:
        search.replay(trial)
    if whole == len(trials):
        return
    # none of a batch knew what the others scored: it is asked for anew, as it was
    for proposal, trial in zip(proposed(trainer, search), trials[whole:], strict=False):
        one, other = proposal.coefficients, trial.coefficients
        if one.keys() != other.keys() or any(abs(one[n] - other[n]) > _CLOSE for n in one):
            raise UserError(
                f"trials.jsonl: trial {trial.index} is {dict(other)}, but the search proposes "
                f"{dict(one)}; mend it, or begin anew with --overwrite true"
            )
        told(trainer, search, trial)
