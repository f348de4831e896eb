"""Anchored steps: all weights of the best merge, trained at the end."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from fmerge.errors import UserError, check_within
from fmerge.evaluation.passes import Pass, Passes
from fmerge.fisher import FisherSettings
from fmerge.merging.learnable import Weights, write_heads
from fmerge.modules import Loss
from fmerge.params import Params, write_params
from fmerge.runs.stage_context import StageContext
from fmerge.runs.stages import Candidate
from fmerge.runs.training import live_body, live_heads, make_course, networks
from fmerge.runs.training_settings import TrainingSettings, check_training
from fmerge.runs.training_stage import Trained, TrainingStage
from fmerge.search.portfolio import PortfolioSearch

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


@dataclass(frozen=True)
class Polishing:
    """Whether and how the weights of the best merge are trained at the end.

    Attributes:
        steps: Steps, at most; 0 for none.
        loss: What they learn from.
        anchor: μ of the anchor μ Σᵢ Fᵢ (θᵢ − θ*ᵢ)².
        learning_rate: Adam's.
    """

    steps: int = 0
    loss: Loss = "experts"
    anchor: float = 0.0
    learning_rate: float = 3e-4


@final
class PolishStage(TrainingStage):
    """Trains all weights of the best merge, body and heads, anchored to where they start.

    Args:
        settings: How it trains.
        anchor: μ of the anchor μ Σᵢ Fᵢ (θᵢ − θ*ᵢ)²; 0 needs no Fisher.
    """

    name = "polish"
    option = "--polish_steps"

    def __init__(self, settings: TrainingSettings, anchor: float = 0.0) -> None:
        super().__init__(settings)
        self.anchor = anchor

    def check(self, run: "MergeRun") -> None:
        """Checks the data; see the base class.

        Args:
            run: The merge.

        Raises:
            UserError: If something is missing, or does not fit.
        """
        self.settings.check("--polish_")
        check_within("--polish_anchor", self.anchor, "[0, inf)")
        check_training(run, self.settings, self.option)
        if run.refitting.wanted:
            raise UserError(
                f"--refit_heads: is {run.refitting.when}, but --polish_steps trains the heads; "
                "leave one of the two out"
            )

    def passes(self, run: "MergeRun") -> Passes:
        """Counts the passes of the training and of its Fisher; see the base class.

        Args:
            run: The merge.

        Returns:
            How often each is made.
        """
        found, data = super().passes(run), run.data
        if self.anchor and data is not None:
            for task in run.ensemble.tasks:
                examples = data.size(task, "train", self.settings.examples)
                found[Pass("Fisher", task, "train", examples)] += 1
        return found

    def origin(self, context: StageContext, start: Candidate) -> Candidate:
        """Chooses the best data-free merge of a portfolio, else the best merge; see the base class.

        Methods that look at examples are fitted to a few, often to some of those that score them,
        so that their scores say too much of them as a start.

        Args:
            context: The run.
            start: The best merge so far.

        Returns:
            Where training starts.
        """
        search = context.search
        if start.trial.stage or not isinstance(search, PortfolioSearch):
            return start
        found = search.best_data_free()
        return start if found is None else Candidate(found)

    def prepare(self, context: StageContext, start: Candidate) -> Trained:
        """Starts from the weights of the best merge; see the base class.

        Args:
            context: The run.
            start: The best merge so far.

        Returns:
            The training.
        """
        run = context.run
        begun = {name: one.clone() for name, one in context.body_of(start).items()}
        weights, heads = live_body(run), live_heads(run)
        moving = {name: one for name, one in begun.items() if name not in weights}

        def write() -> None:
            write_heads(networks(run), run.heads)
            write_heads(networks(run), start.heads)
            write_params(networks(run)[run.ensemble.tasks[0]], begun)

        write()
        fisher = None
        if self.anchor:
            fisher = self._fisher(run, begun)
            write()
        learnable = Weights(weights, heads, self.settings.learning_rate, self.anchor, fisher)
        course = make_course(run, self.settings, learnable, heads, context.targets)
        write()  # over the experts, whose probabilities were asked for
        return Trained(course, lambda: course.live(moving))

    def _fisher(self, run: "MergeRun", body: Params) -> tuple[Params, dict[str, Params]]:
        """The mean over tasks of their exact Fishers, over the body and by task over its head."""
        settings = FisherSettings(
            split="train", examples=self.settings.examples, seed=self.settings.seed
        )
        shared, heads = {name: torch.zeros_like(one) for name, one in body.items()}, {}
        for task in run.ensemble.tasks:
            found = run.evaluator.fisher(task, settings, body).values
            means = {name: one.cpu() / len(run.ensemble.tasks) for name, one in found.items()}
            for name, one in means.items():
                if name in shared:
                    shared[name] += one.to(shared[name])
            heads[task] = {name: one for name, one in means.items() if name not in shared}
        return shared, heads
