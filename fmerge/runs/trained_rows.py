"""Baselines of a trained merge: others, trained on the same examples with as many steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fmerge.evaluation.head_refit import Heads
from fmerge.evaluation.passes import Passes
from fmerge.merging.learnable import Weights, write_heads
from fmerge.merging.trials import attempt
from fmerge.modules import Loss
from fmerge.modules.losses import GUIDED
from fmerge.params import Params, write_params
from fmerge.report.scores import AVERAGE_TUNED, BASE_DISTILLED, BASE_TUNED
from fmerge.runs.polish_stage import Polishing, PolishStage
from fmerge.runs.training import live_body, live_heads, make_course, networks
from fmerge.runs.training_settings import TrainingSettings
from fmerge.runs.training_stage import TrainingStage
from fmerge.search import Search, Trial
from fmerge.search.objective import Objective

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


@dataclass(frozen=True)
class TrainedRows:
    """The rows of a table that are trained for it, and how.

    All weights are trained, body and heads, by the learner of ``--polish_steps`` without an anchor,
    from the experts' own heads; the best check on the validation split is the row.

    Attributes:
        run: The merge.
        staged: The trials of its stages, where they have been made.
    """

    run: "MergeRun"
    staged: Sequence[Trial] = ()

    @property
    def stages(self) -> list[TrainingStage]:
        """The stages that train."""
        return [one for one in self.run.stages if isinstance(one, TrainingStage)]

    @property
    def losses(self) -> Mapping[str, Loss]:
        """Names the rows.

        Returns:
            Name to what the row learns from, in order.
        """
        run, used = self.run, {one.settings.loss for one in self.stages}
        found: dict[str, Loss] = {}
        if run.baselines != "all":
            return found
        if used & {"labels", "both"}:
            if run.ensemble.base is not None:
                found[BASE_TUNED] = "labels"
            found[AVERAGE_TUNED] = "labels"
        if used - {"labels"} and run.ensemble.base is not None:
            found[BASE_DISTILLED] = "experts"
        return found

    def settings(self, loss: Loss) -> TrainingSettings:
        """Takes the examples and as many steps as all stages together, at most.

        Where a budget has ended the stages, the row has as many steps as they made.

        Args:
            loss: What the row learns from.

        Returns:
            How it is trained.
        """
        polishing = [one for one in self.stages if isinstance(one, PolishStage)]
        rates = [one.settings.learning_rate for one in polishing]
        steps = sum(one.settings.steps for one in self.stages)
        if self.run.budget is not None and self.staged:
            every = {one.name: one.settings.every for one in self.stages}
            steps = min(steps, sum(every.get(trial.stage, 0) for trial in self.staged))
        return replace(
            self.stages[0].settings,
            loss=loss,
            steps=steps,
            learning_rate=rates[0] if rates else Polishing.learning_rate,
        )

    def passes(self) -> Passes:
        """Counts the passes of the training, at most.

        Returns:
            How often each is made.
        """
        asked = any(one.settings.loss in GUIDED for one in self.stages)
        found = Passes()
        for loss in self.losses.values():
            found += self.settings(loss).passes(self.run, targets=loss == "experts" and not asked)
        return found

    def train(
        self,
        name: str,
        body: Params,
        search: Search,
        goal: Objective,
        known: dict[tuple[Any, ...], Tensor],
    ) -> tuple[Params, Heads]:
        """Trains a row; afterwards the live networks have the experts' heads.

        Args:
            name: Its name.
            body: Where it starts.
            search: Ranks its checks, bounds included.
            goal: What is maximised.
            known: What the experts say of the examples; it is added to.

        Returns:
            The body and heads of its best check.
        """
        run, settings = self.run, self.settings(self.losses[name])
        start = {key: one.clone() for key, one in body.items()}
        live, heads = live_body(run), live_heads(run)
        course = make_course(
            run, settings, Weights(live, heads, settings.learning_rate), heads, known
        )
        first = networks(run)[run.ensemble.tasks[0]]
        write_heads(networks(run), run.heads)
        write_params(first, start)
        moving = {key: one for key, one in start.items() if key not in live}
        best: tuple[Trial | None, Params, Heads] = None, start, course.head_values()
        waited = 0
        for steps in settings.segments():
            if waited >= settings.patience or not course.train(steps):
                break
            made, own = course.live(moving), course.head_values()
            score = partial(run.validate, goal=goal, heads=own)
            trial = attempt(0, {}, partial(_given, made), score)
            write_params(first, made)
            waited += 1
            better = best[0] is None or search.rank(trial) > search.rank(best[0])
            if trial.status == "ok" and better:
                best, waited = (trial, made, own), 0
        write_heads(networks(run), run.heads)
        return best[1], best[2]


def _given(body: Params, _: object) -> Params:
    return body
