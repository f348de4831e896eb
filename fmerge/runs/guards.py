"""The plain average beside every search: a merge that falls below it is not saved in silence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fmerge.evaluation.passes import Pass, Passes
from fmerge.methods import MergeMethod
from fmerge.report.model_card import parameters_of
from fmerge.runs.finish import calibration_of
from fmerge.runs.stage_context import StageContext
from fmerge.runs.stages import PLAIN_AVERAGE, Candidate, Stage
from fmerge.search import Search, Trial

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

_FEW_TRIALS = 20
_FEW_EXAMPLES = 100

_KNOBS: Mapping[str, str] = {
    "normalize": "--method.normalize {other}, which weighs the experts' Fishers otherwise",
    "density": "a larger --method.density",
    "drop": "a smaller --method.drop",
    "bottom": "a smaller --method.bottom",
    "off_diagonal": "a smaller --method.off_diagonal",
    "damping": "--method.damping 0.1, which keeps small Fishers from deciding",
}
"""Parameter of a method to what may raise its merge."""


class AverageBaseline(Stage):
    """Scores the plain average, to compare a merge with; it is never chosen itself."""

    name = PLAIN_AVERAGE
    improves = False

    def passes(self, run: "MergeRun") -> Passes:
        """Counts a score of each task, as of a trial; see the base class.

        Args:
            run: The merge.

        Returns:
            The passes.
        """
        if (data := run.data) is None:
            return Passes()
        passes = Passes()
        for task in run.ensemble.tasks:
            passes[Pass("score", task, "validation", data.size(task, "validation"))] += 1
            if run.refitting.when == "trials":
                most = data.size(task, "train", run.refitting.most)
                passes[Pass("score", task, "train", most)] += 1
        calibration = calibration_of(run)
        if calibration is not None and calibration.method is None:  # statistics of buffers
            passes += calibration.passes(data)
        return passes

    def run(self, context: StageContext, start: Candidate) -> Candidate:
        """Scores the average, where no trial of the search was it; see the base class.

        Args:
            context: Scores and logs.
            start: The best merge so far.

        Returns:
            The same.
        """
        if average_of(context.search.history, context.run.method) is None:
            context.score(self.name, {}, context.assembler.average)
        return start

    def rebuild(self, context: StageContext, trial: Trial) -> Candidate:
        """Averages once more; see the base class.

        Args:
            context: Knows the experts.
            trial: The trial.

        Returns:
            The average.
        """
        return Candidate(trial, context.assembler.average())


def average_of(trials: Sequence[Trial], method: MergeMethod) -> Trial | None:
    """Finds the trial that is the plain average.

    Args:
        trials: The trials of a run, those of its stages too.
        method: The run's method.

    Returns:
        The first that was scored in full; None if there is none.
    """
    for trial in trials:
        weights = set(trial.coefficients.values()) if method.holds_average else set()
        own = len(weights) == 1 and (method.scale_invariant or _are_shares(trial.coefficients))
        if trial.status == "ok" and (trial.stage == PLAIN_AVERAGE or (own and not trial.stage)):
            return trial
    return None


def _are_shares(coefficients: Mapping[str, float]) -> bool:
    experts = {name.partition("/")[0] for name in coefficients}
    return all(abs(value * len(experts) - 1) < 1e-12 for value in coefficients.values())


def below_average(run: "MergeRun", search: Search, best: Trial, trials: Sequence[Trial]) -> str:
    """Says that a merge is worse than the plain average on validation, if it is.

    Args:
        run: The merge.
        search: The search, which ranks trials.
        best: The trial that was chosen.
        trials: All trials.

    Returns:
        A sentence with the likely remedy; empty where the merge is as good or nothing was scored.
    """
    average = average_of(trials, run.method)
    if average is None or best.objective is None or search.rank(average) <= search.rank(best):
        return ""
    scores = [100 * (trial.objective or 0.0) for trial in (best, average)]
    likely = "; or ".join(likely_knobs(run, search, best))
    return (
        f"BELOW THE PLAIN AVERAGE on validation: {type(run.method).__name__} has "
        f"{scores[0]:.1f}, the plain average {scores[1]:.1f} (trial {average.index}); try {likely}"
    )


def likely_knobs(run: "MergeRun", search: Search, best: Trial) -> list[str]:
    """Lists what may raise a merge that is below the average, the likeliest first.

    Args:
        run: The merge.
        search: The search.
        best: The trial that was chosen.

    Returns:
        Options with their values, at most three.
    """
    method: MergeMethod = run.method
    parameters: Mapping[str, Any] = parameters_of(method)
    found = [
        text.format(other=str(not parameters[name]).lower())
        for name, text in _KNOBS.items()
        if name in parameters
    ]
    box = search.space.box
    at_bounds = [n for n, one in best.coefficients.items() if one in box.get(n, ())]
    if at_bounds and not method.scale_invariant:
        found.append(
            f"other --optimizer.bounds, as the coefficient of {at_bounds[0]} is at its own"
        )
    examples = run.settings.examples
    if run.estimated is not None and examples is not None and examples < _FEW_EXAMPLES:
        found.append(f"more --fisher.examples than {examples}")
    if search.budget < _FEW_TRIALS and method.uses_coefficients:
        found.append(f"a search of more trials than {search.budget}")
    return [*found[:2], "another --method"]
