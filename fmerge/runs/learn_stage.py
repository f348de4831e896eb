"""Coefficients by layer or tensor, learned by gradient after the search."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from fmerge.errors import UserError
from fmerge.merging.check_gradient import check_gradient
from fmerge.merging.learnable import Coefficients, LearnedGroups, learned_groups, write_heads
from fmerge.params import Params
from fmerge.runs.stage_context import StageContext
from fmerge.runs.stages import Candidate
from fmerge.runs.training import live_body, live_heads, make_course, networks
from fmerge.runs.training_settings import TrainingSettings, check_training
from fmerge.runs.training_stage import Trained, TrainingStage
from fmerge.search.parameter_groups import Groups, coefficient_name, partition

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


@final
class LearnStage(TrainingStage):
    """Learns coefficients by layer or tensor, and each task's head along if it is asked for.

    Args:
        settings: How it trains.
        groups: What has coefficients of its own.
        searched: The search's groups, whose best coefficients it starts from.
        with_heads: Whether heads are trained along.
        head_learning_rate: Adam's, of the heads.
    """

    name = "learn"
    option = "--optimizer.learn"

    def __init__(
        self,
        settings: TrainingSettings,
        groups: LearnedGroups,
        searched: Groups = "whole",
        with_heads: bool = False,
        head_learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(settings)
        self.groups = groups
        self.searched = searched
        self.with_heads = with_heads
        self.head_learning_rate = head_learning_rate

    def check(self, run: "MergeRun") -> None:
        """Checks data, method and groups; see the base class.

        Args:
            run: The merge.

        Raises:
            UserError: If something is missing, or does not fit.
        """
        self.settings.check("--optimizer.")
        if self.groups not in {"layers", "tensors"}:
            raise UserError(f"{self.option}: is {self.groups!r}, but must be layers or tensors")
        check_training(run, self.settings, self.option)
        check_gradient(run.method, self.option, len(run.ensemble.names))
        self._spread(run, {})
        if self.with_heads:
            check_heads(run)

    def prepare(self, context: StageContext, start: Candidate) -> Trained:
        """Starts from the coefficients of the search's best trial; see the base class.

        Args:
            context: The run.
            start: The best merge so far.

        Returns:
            The training.
        """
        run = context.run
        groups = learned_groups(run.ensemble.tensors, self.groups)
        heads = live_heads(run) if self.with_heads else {}
        # a stage before this one may have left the coefficients behind
        trial = start.trial if start.body is None else context.search.best()
        names, where = context.search.space.numbers, run.trainer.strategy.root_device
        numbers = {name: trial.coefficients[name] for name in names}  # as they were searched
        assembler = context.assembler.regrouped(groups, where, numbers)
        learnable = Coefficients(
            assembler,
            self._spread(run, trial.coefficients),
            live_body(run),
            heads,
            self.settings.learning_rate,
            self.head_learning_rate,
        )
        course = make_course(run, self.settings, learnable, heads, context.targets)
        write_heads(networks(run), run.heads)
        device = run.ensemble.device

        def body() -> Params:
            merged = assembler.assemble(learnable.named)
            return {name: one.to(device, copy=True) for name, one in merged.items()}

        return Trained(course, body, lambda: learnable.named | numbers)

    def _spread(self, run: "MergeRun", found: Mapping[str, float]) -> dict[str, float]:
        """Gives each learned group the coefficients of the searched group that it is in."""
        searched = partition(run.ensemble.tensors, self.searched)
        group_of = {name: group for group, names in searched.items() for name in names}
        spread = {}
        for group, names in learned_groups(run.ensemble.tensors, self.groups).items():
            around = list(dict.fromkeys(group_of[name] for name in names))
            if len(around) > 1:
                raise UserError(
                    f"{self.option}: {self.groups}: '{group}' has tensors of the searched groups "
                    f"'{around[0]}' and '{around[1]}'; learn tensors, or leave --optimizer.groups "
                    "out"
                )
            for expert in run.ensemble.names:
                start = found.get(coefficient_name(expert, around[0]), 0.0)
                spread[coefficient_name(expert, group)] = start
        return spread


def check_heads(run: "MergeRun") -> None:
    """Checks that heads can be trained along.

    Args:
        run: The merge.

    Raises:
        UserError: If there are none, or they are refitted as well.
    """
    parts = run.ensemble.models.items()
    if not any(
        name not in run.ensemble.bodies[task]
        for task, one in parts
        for name, _ in one.named_parameters()
    ):
        raise UserError(
            f"--heads: is train, but the networks of {type(run.module).__name__} have no heads; "
            "leave it out"
        )
    if run.refitting.wanted:
        raise UserError(
            f"--refit_heads: is {run.refitting.when}, but heads are trained; leave one of the two "
            "out"
        )
