"""One training of a merge: its settings, its examples, and the live weights that it is of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fmerge.evaluation.evaluator import Evaluator
from fmerge.evaluation.segments import Source, fit_steps, targets_of
from fmerge.merging.learnable import Leaves, head_values, write_heads
from fmerge.modules.learner import Learnable, Learner
from fmerge.modules.losses import GUIDED
from fmerge.params import Params
from fmerge.runs.training_settings import TrainingSettings

if TYPE_CHECKING:
    from fmerge.runs.merge import MergeRun


@dataclass(frozen=True, kw_only=True)
class Course:
    """One training: what is learned, of which live networks, on which examples.

    Attributes:
        run: The merge.
        settings: How it trains.
        learner: What is trained.
        sources: Task name to its examples.
        body: The live body's weights.
        heads: Task name to the weights of its live head, where heads are trained.
    """

    run: "MergeRun"
    settings: TrainingSettings
    learner: Learner
    sources: Mapping[str, Source]
    body: Leaves
    heads: Mapping[str, Leaves]

    def train(self, steps: range) -> bool:
        """Trains for some steps.

        Args:
            steps: Which.

        Returns:
            Whether all stayed finite.
        """
        finite = fit_steps(self.run.trainer, self.learner, self.sources, steps)
        if steps.stop == self.settings.steps:
            for task in self.sources:
                self.run.evaluator.made[self.settings.step_pass(self.run, task)] += 1
        return finite

    def live(self, moving: Params) -> Params:
        """Copies the live body.

        Args:
            moving: The buffers that belong to it.

        Returns:
            Body tensors by name, where the bodies are.
        """
        device = self.run.ensemble.device
        weights = {name: one.detach().to(device, copy=True) for name, one in self.body.items()}
        return weights | moving

    def head_values(self) -> dict[str, Params]:
        """Copies the live heads that are trained."""
        return head_values(self.heads)


def live_body(run: "MergeRun") -> Leaves:
    """Finds the live body's weights, which all tasks share.

    Args:
        run: The merge.

    Returns:
        Names to parameters, without buffers.
    """
    network = run.module.task_model(run.ensemble.tasks[0])
    own = dict(network.named_parameters())
    return {name: own[name] for name in run.ensemble.tensors if name in own}


def live_heads(run: "MergeRun") -> dict[str, Leaves]:
    """Finds the weights of the live heads.

    Args:
        run: The merge.

    Returns:
        Task name to names and parameters; a task whose network is its body alone has none.
    """
    shared = {id(one) for one in live_body(run).values()}
    found = {
        task: {
            name: one
            for name, one in run.module.task_model(task).named_parameters()
            if id(one) not in shared
        }
        for task in run.ensemble.tasks
    }
    return {task: head for task, head in found.items() if head}


def networks(run: "MergeRun") -> dict[str, nn.Module]:
    """Finds the live networks.

    Args:
        run: The merge.

    Returns:
        Task name to network.
    """
    return {task: run.module.task_model(task) for task in run.ensemble.tasks}


def sources_of(
    run: "MergeRun", settings: TrainingSettings, known: dict[tuple[Any, ...], Tensor]
) -> dict[str, Source]:
    """Collects the examples of a training, with what the experts say of them.

    Args:
        run: The merge; its live module gets other bodies.
        settings: Which examples, and whether the experts are asked.
        known: What was computed before, by task and examples; it is added to.

    Returns:
        Task name to its examples.
    """
    evaluator, data = run.evaluator, run.evaluator.data
    found = {}
    for number, task in enumerate(run.ensemble.tasks):
        loader = data.loaders("train", [task], settings.examples, settings.seed)[task]
        examples = loader.dataset.examples  # type: ignore[attr-defined]
        size = min(data.batch_size, len(examples))
        source = Source(examples, size, settings.seed * 1_000 + number)
        if settings.loss in GUIDED:
            key = (task, settings.examples, settings.seed)
            if key not in known:
                known[key] = _targets(run, evaluator, task, settings)
            source.targets = known[key]
        found[task] = source
    return found


def _targets(
    run: "MergeRun", evaluator: Evaluator, task: str, settings: TrainingSettings
) -> Tensor:
    write_heads(networks(run), {task: run.heads[task]})
    body = run.ensemble.bodies[task]
    return targets_of(evaluator, task, body, settings.examples, settings.seed)


def make_course(
    run: "MergeRun",
    settings: TrainingSettings,
    learnable: Learnable,
    heads: Mapping[str, Leaves],
    known: dict[tuple[Any, ...], Tensor],
) -> Course:
    """Prepares a training.

    Args:
        run: The merge.
        settings: How it trains.
        learnable: What is learned.
        heads: The live heads that are trained.
        known: See ``sources_of``.

    Returns:
        The training; the live networks have to be written before its first step.
    """
    sources = sources_of(run, settings, known)
    sizes = {task: source.size for task, source in sources.items()}
    learner = Learner(run.module, learnable, settings.loss, sizes)
    return Course(
        run=run,
        settings=settings,
        learner=learner,
        sources=sources,
        body=live_body(run),
        heads=heads,
    )
