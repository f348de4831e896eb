"""How the merge of a trial is scored."""

from typing import TYPE_CHECKING

from fmerge.evaluation.head_refit import Heads, using_heads
from fmerge.params import Params
from fmerge.search.objective import Objective, Scores

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


def trial_scores(run: "MergeRun", body: Params, goal: Objective, heads: Heads | None) -> Scores:
    """Scores a merge on the validation split, under the heads that trials are scored with.

    Args:
        run: The merge.
        body: The merged tensors.
        goal: What is maximised.
        heads: Heads of its own, if it has any.

    Returns:
        The scores, without labels where none may be read; none without data.
    """
    if run.data is None:
        return Scores()
    if run.labels == "none":
        with using_heads(run.module, heads or {}):
            return goal.of(run.agreement.score(body, run.ensemble.tasks), {})
    if heads:
        with using_heads(run.module, heads):
            metrics = run.evaluator.score(body, "validation", run.ensemble.tasks)
    elif run.refitting.when == "trials":
        metrics = run.refitter.score(body, "validation", run.refitter.fit(body))
    else:
        metrics = run.evaluator.score(body, "validation", run.ensemble.tasks)
    return goal.of(metrics, run.evaluator.errors(metrics, "validation"))
