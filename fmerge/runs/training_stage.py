"""Stages that train from the best merge so far, and score what they have learned."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fmerge.evaluation.passes import Passes
from fmerge.merging.learnable import write_heads
from fmerge.modules.learner import Learner
from fmerge.modules.losses import GUIDED
from fmerge.params import Params, write_params
from fmerge.runs.stage_context import StageContext
from fmerge.runs.stages import Candidate, Stage
from fmerge.runs.training import Course, networks
from fmerge.runs.training_settings import TrainingSettings
from fmerge.store import read_partial, write_partial

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun

_DONE = "done"


@dataclass(frozen=True)
class Trained:
    """A training, and how its merge is made.

    Attributes:
        course: The training.
        body: Makes the body as it is now, in new tensors.
        coefficients: Names what is learned; empty where it has no names.
    """

    course: Course
    body: Callable[[], Params]
    coefficients: Callable[[], Mapping[str, float]] = dict


class TrainingStage(Stage):
    """A stage that trains, and scores what it has learned every few steps.

    Args:
        settings: How it trains.
    """

    option: str
    """The option that asks for it, for messages."""

    def __init__(self, settings: TrainingSettings) -> None:
        self.settings = settings

    def passes(self, run: "MergeRun") -> Passes:
        """Counts the passes of the training; see the base class.

        Args:
            run: The merge.

        Returns:
            How often each is made.
        """
        asking = [
            one
            for one in run.stages
            if isinstance(one, TrainingStage) and one.settings.loss in GUIDED
        ]
        return self.settings.passes(run, targets=asking[:1] == [self])  # they are asked once

    @abstractmethod
    def prepare(self, context: StageContext, start: Candidate) -> Trained:
        """Prepares the training, with the live networks at its start.

        Args:
            context: The run.
            start: The best merge so far.

        Returns:
            The training, and how its merge is made.
        """

    def origin(self, context: StageContext, start: Candidate) -> Candidate:
        """Chooses the merge that training starts from.

        Args:
            context: The run.
            start: The best merge so far.

        Returns:
            That, unless a stage knows better.
        """
        return start

    def run(self, context: StageContext, start: Candidate) -> Candidate:
        """Trains, checks, keeps the best; see the base class.

        Args:
            context: Scores, logs and keeps.
            start: The best merge so far.

        Returns:
            The best merge, ``start`` where no check was better.
        """
        run, origin = context.run, self.origin(context, start)
        trained = self.prepare(context, origin)
        done = self._resume(context, origin, trained.course.learner)
        best, lead, waited = start, origin.trial, 0
        for number, steps in enumerate(self.settings.segments()):
            if number >= done and context.late(self.name):
                context.notes.append(f"{self.option}: ended by --budget before step {steps.start}")
                break
            if number >= done and not trained.course.train(steps):
                context.say(
                    f"{self.option}: what is learned has diverged by step {steps.stop}: "
                    f"stopped, and trial {best.trial.index} is the last good one; lower the "
                    f"learning rate, which is {self.settings.learning_rate:g}"
                )
                break
            body = trained.body() if number >= done else None
            heads = trained.course.head_values()
            rounded = partial(context.assembler.in_dtypes, body or {})
            trial = context.score(self.name, trained.coefficients(), rounded, heads)
            better = context.is_better(trial, lead)  # of its own, where it began below the best
            lead, waited = (trial, 0) if better else (lead, waited + 1)
            if context.is_better(trial, best.trial):
                best = Candidate(trial, rounded() if body else None, heads)
                context.keep(best)
            if body is not None:
                write_params(networks(run)[run.ensemble.tasks[0]], body)
                self._save(context, origin, trained.course.learner, number + 1)
            if waited >= self.settings.patience:
                break
        write_heads(networks(run), run.heads)
        if best.trial.stage == self.name and best.body is None:  # of before the interruption
            return context.kept(best.trial)
        return best

    def _belongs(self, start: Candidate) -> dict[str, Any]:
        return {"stage": self.name, "start": start.trial.index, **asdict(self.settings)}

    def _save(self, context: StageContext, start: Candidate, learner: Learner, done: int) -> None:
        if context.run.trainer.is_global_zero:
            tensors = {**learner.snapshot(), _DONE: torch.tensor([done])}
            write_partial(context.folder.state(self.name), self._belongs(start), tensors)

    def _resume(self, context: StageContext, start: Candidate, learner: Learner) -> int:
        """Restores what was saved; returns how many segments that was after."""
        saved = None
        if context.run.trainer.is_global_zero:
            saved = read_partial(context.folder.state(self.name), self._belongs(start))
        saved = context.run.trainer.strategy.broadcast(saved)
        if saved is None:
            return 0
        done = int(saved.pop(_DONE))
        if done > context.logged(self.name):  # trials were taken out of the log
            return 0
        learner.restore(saved)
        return done
