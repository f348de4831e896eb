"""Stages that nobody asked for by name, and that a merge cannot have."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

from fmerge.errors import UserError
from fmerge.methods import Auto
from fmerge.modules import Loss
from fmerge.runs.labels import Labels
from fmerge.runs.polish_stage import Polishing, PolishStage
from fmerge.runs.stage_context import StageContext
from fmerge.runs.stages import Candidate, Stage
from fmerge.runs.training_settings import UNLISTED

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


@final
class LeftOut(Stage):
    """A stage that says why another was left out.

    Args:
        reason: One sentence.
    """

    name = "left out"
    improves = False

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def run(self, context: StageContext, start: Candidate) -> Candidate:
        """Says it.

        Args:
            context: Takes the sentence.
            start: The best merge so far.

        Returns:
            The same.
        """
        context.say(self.reason)
        return start


def polishing_of(method: object, given: Polishing, labels: Labels, module: object) -> Polishing:
    """Finds how the best merge's weights are trained at the end.

    Args:
        method: The run's method.
        given: What the options ask for.
        labels: Which labels may be read.
        module: Which answers the tasks have.

    Returns:
        What they ask for; with ``Auto``, where they ask for none, its own steps.
    """
    if not isinstance(method, Auto) or given.steps:
        return given
    loss: Loss = "labels" if isinstance(module, UNLISTED) else "both"
    return replace(given, steps=method.steps, loss="experts" if labels == "none" else loss)


def checked_stages(run: "MergeRun", unasked: bool) -> Sequence[Stage]:
    """Checks the stages of a run.

    Args:
        run: The merge.
        unasked: Whether the weights are trained although no option asks for it.

    Returns:
        The stages; in place of training that nobody asked for, and that cannot be, what says so.

    Raises:
        UserError: If a stage cannot run that was asked for.
    """
    found: list[Stage] = []
    for stage in run.stages:
        try:
            stage.check(run)
        except UserError as error:
            if not (unasked and isinstance(stage, PolishStage)):
                raise
            stage = LeftOut(f"Auto: the stage polish was left out: {error}")
        found.append(stage)
    return found
