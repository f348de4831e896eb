"""Whether a merge may read the labels of training and validation examples."""

from dataclasses import dataclass
from typing import Literal

from fmerge.errors import UserError
from fmerge.evaluation.head_refit import Refitting
from fmerge.fisher import FisherSettings
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.modules import TaskModule
from fmerge.runs.polish_stage import Polishing
from fmerge.runs.training_settings import UNLISTED

Labels = Literal["all", "none"]
"""all: trials are scored as the task is; none: by ``Agreement``, and no label is read before the
test."""


@dataclass(frozen=True)
class Asked:
    """The options of a merge that may need labels.

    Attributes:
        optimizer: The search, and what is learned after it.
        polishing: How the best merge's weights are trained.
        refitting: When heads are refitted.
        fisher: How Fishers are estimated.
    """

    optimizer: MergeOptimizer
    polishing: Polishing
    refitting: Refitting
    fisher: FisherSettings

    def check(self, labels: Labels, module: TaskModule) -> None:
        """Checks that nothing needs labels where there are none.

        Args:
            labels: Which may be read.
            module: Which answers the tasks have.

        Raises:
            UserError: If something does, or ``labels`` is unknown.
        """
        if labels not in {"all", "none"}:
            raise UserError(f"--labels: is {labels!r}, but must be all or none")
        if labels == "all":
            return
        if isinstance(module, UNLISTED):
            raise UserError(
                f"--labels: is none, which compares the probabilities of listed answers, but "
                f"{type(module).__name__} does not list them; leave it out"
            )
        learned = self.optimizer.learn is not None
        needs = {
            f"--optimizer.loss {self.optimizer.loss}": learned
            and self.optimizer.loss in {"labels", "both"},
            f"--polish_loss {self.polishing.loss}": self.polishing.loss in {"labels", "both"},
            f"--refit_heads {self.refitting.when}": self.refitting.wanted,
            f"--fisher.estimator {self.fisher.estimator}": self.fisher.estimator == "empirical",
            "--optimizer.racing true": self.optimizer.racing,
        }
        for option, needed in needs.items():
            if needed:
                raise UserError(
                    f"{option}: needs labels, but --labels is none; leave one of them out"
                )


def label_facts(labels: Labels) -> list[str]:
    """Says how trials were scored where no labels may be read.

    Args:
        labels: Which may be read.

    Returns:
        A sentence, or none.
    """
    if labels == "all":
        return []
    return [
        "labels: none was read before the test; a trial's score of a task is exp(−KL), the KL "
        "divergence of the merge's probabilities from its expert's, a mean over the validation "
        "examples"
    ]
