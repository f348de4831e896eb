"""Which training stages a merge has, from its options."""

from fmerge.errors import UserError, check_within
from fmerge.merging.merged_heads import HeadMode
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.runs.learn_stage import LearnStage
from fmerge.runs.polish_stage import Polishing, PolishStage
from fmerge.runs.training_settings import TrainingSettings
from fmerge.runs.training_stage import TrainingStage


def training_stages(
    optimizer: MergeOptimizer, polishing: Polishing, heads: HeadMode
) -> list[TrainingStage]:
    """Lists the stages that options ask for.

    Args:
        optimizer: Whether and how coefficients are learned.
        polishing: Whether and how weights are trained.
        heads: Whether heads are trained along with coefficients.

    Returns:
        The stages, in order.

    Raises:
        UserError: If heads are to be trained, but nothing else is.
    """
    check_within("--polish_steps", polishing.steps, "[0, inf)")
    shared = {"examples": optimizer.examples, "patience": optimizer.patience}
    stages: list[TrainingStage] = []
    if optimizer.learn is not None:
        settings = TrainingSettings(
            loss=optimizer.loss,
            steps=optimizer.steps,
            learning_rate=optimizer.learning_rate,
            **shared,  # type: ignore[arg-type]
        )
        stages.append(
            LearnStage(settings, optimizer.learn, optimizer.groups, with_heads=heads == "train")
        )
    elif heads == "train":
        raise UserError(
            "--heads: is train, but no coefficients are learned; add --optimizer.learn layers or "
            "tensors (--polish_steps trains heads by itself)"
        )
    if polishing.steps:
        settings = TrainingSettings(
            loss=polishing.loss,
            steps=polishing.steps,
            learning_rate=polishing.learning_rate,
            **shared,  # type: ignore[arg-type]
        )
        stages.append(PolishStage(settings, polishing.anchor))
    return stages
