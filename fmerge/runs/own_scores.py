"""The experts' own validation scores, which shares and bounds refer to."""

from typing import TYPE_CHECKING

from fmerge.store import RunFolder

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

_OWN = "experts' validation scores"


def own_scores(run: "MergeRun", folder: RunFolder) -> dict[str, float]:
    """Scores each expert on its own validation split, once even if a run is resumed.

    Args:
        run: The merge.
        folder: The run's folder; the first process notes the scores there.

    Returns:
        Task name to score.
    """
    if run.labels == "none":  # each agrees with itself
        return dict.fromkeys(run.ensemble.tasks, 1.0)
    noted = (folder.noted(_OWN) or {}) if run.trainer.is_global_zero else {}
    own: dict[str, float] = run.trainer.strategy.broadcast(noted)
    if not own:
        for name in run.ensemble.tasks:
            own |= run.evaluator.score(run.ensemble.bodies[name], "validation", [name])
        if run.trainer.is_global_zero:  # a resumed run must divide by the very same scores
            folder.note(_OWN, own)
    return own
