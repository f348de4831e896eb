"""How near a merge's answers are to its experts', on examples whose labels are not read."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fmerge.evaluation.evaluator import Evaluator, silent
from fmerge.modules.learner import DistancePass, TargetPass
from fmerge.params import Params
from fmerge.system.distributed import gather, in_dataset_order


class Agreement:
    r"""Scores a body without labels.

    .. math::
        s_t = \exp\Big(-\frac{1}{N} \sum_n \mathrm{KL}(p_n \| q_n)\Big)

    over the N validation examples of task t, where p are the probabilities of the task's expert
    and q those of the merge: 1 where they are the same.

    Args:
        evaluator: Knows the Trainer, the module and the data.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._targets: dict[str, Sequence[Tensor]] = {}

    def ask(self, bodies: Mapping[str, Params]) -> None:
        """Asks the experts, while the live networks have their heads.

        Args:
            bodies: Task name to the body of its expert.
        """
        for task, body in bodies.items():
            if task not in self._targets:
                self.evaluator.write_body(body)
                count = self.evaluator.data.size(task, "validation")
                one = TargetPass(self.evaluator.module, count)  # type: ignore[arg-type]
                self._targets[task] = self._predict(task, one)

    def score(self, body: Params, tasks: Sequence[str]) -> dict[str, float]:
        """Scores a body, with the heads that the live networks have.

        Args:
            body: Body tensors by name.
            tasks: Which tasks; their experts must have been asked.

        Returns:
            Task name to its score.
        """
        self.evaluator.write_body(body)
        found = {}
        for task in tasks:
            module = self.evaluator.module
            own = self._predict(task, DistancePass(module, self._targets[task]))  # type: ignore[arg-type]
            shares = [torch.cat(list(one)) for one in gather(self.evaluator.trainer, own) if one]
            distances = in_dataset_order(shares)
            found[task] = math.exp(-float(distances.double().mean()))
        return found

    def _predict(self, task: str, one: TargetPass | DistancePass) -> list[Tensor]:
        """Runs a pass over a task's validation examples: this process's batches."""
        evaluator = self.evaluator
        loader = evaluator.data.loaders("validation", [task])[task]
        with silent(evaluator.trainer):
            found: list[Tensor] = evaluator.trainer.predict(one, dataloaders=loader)  # type: ignore[assignment]
        evaluator.note("score", "validation", [task])
        return found
