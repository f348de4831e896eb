"""Trials scored on growing parts of a split, and pruned once they cannot be the best."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from lightning.pytorch import Trainer

from fmerge.data import BLOCKS, MultiTask
from fmerge.errors import UserError
from fmerge.evaluation.evaluator import Evaluator, by_accuracy
from fmerge.merging.assembler import Assembler
from fmerge.modules import TaskModule
from fmerge.params import Params
from fmerge.search import Search, Trial
from fmerge.search.early_stopping import should_prune, standing, stopped_scores
from fmerge.search.objective import Objective, Scores

Answers = dict[str, list[bool]]
"""Whether each example was right, by task, in the order of the blocks."""


class Race:
    """Scores trials on the validation split, block by block.

    Args:
        evaluator: Makes the passes.
        module: The live module.
        search: Knows the best trial so far.
        goal: What is maximised, and the bounds.
        tasks: What is scored.
        live: The context in which the live module has a body, under the heads it is scored with.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        module: TaskModule,
        search: Search,
        goal: Objective,
        tasks: Sequence[str],
        live: Callable[[Params], AbstractContextManager[None]],
    ) -> None:
        self.evaluator = evaluator
        self.module = module
        self.search = search
        self.goal = goal
        self.tasks = tasks
        self.live = live
        self._answers: dict[int, Answers] = {}  # incumbent's, and last full trial's

    def recall(self, assembler: Assembler) -> None:
        """Scores the best trial of an interrupted run once more, if more trials are to come.

        Args:
            assembler: Assembles it.
        """
        best = self._best()
        if best is None or self.search.finished:
            return
        answers: Answers = {task: [] for task in self.tasks}
        with self.live(assembler.assemble(best.coefficients)):
            for block in range(BLOCKS):
                self._see(answers, block)
        self._answers = {best.index: answers}

    def score(self, body: Params) -> Scores:
        """Scores a merge; all processes decide alike.

        Args:
            body: The merged tensors.

        Returns:
            Scores on the whole split, or where it was stopped estimates of them.
        """
        with self.live(body):
            return self._score()

    def _score(self) -> Scores:
        best = self._best()
        # the last trial may have become the incumbent, or has been forgotten
        self._answers = {} if best is None else {best.index: self._answers[best.index]}
        answers: Answers = {task: [] for task in self.tasks}
        for block in range(BLOCKS):
            if not self._see(answers, block) or best is None:
                continue
            known = self._answers[best.index]
            standings = {task: standing(answers[task], known[task]) for task in self.tasks}
            if all(one.seen == one.examples for one in standings.values()):
                break
            prune = should_prune(self.goal, standings, best.metrics, looks=BLOCKS - 1)
            # a process that continued alone would wait for the others indefinitely
            if self.evaluator.trainer.strategy.broadcast(prune):
                return stopped_scores(self.goal, standings)
        self._answers[len(self.search.history)] = answers
        metrics = {task: _accuracy(right) for task, right in answers.items()}
        return self.goal.of(metrics, self.evaluator.errors(metrics, "validation"))

    def _best(self) -> Trial | None:
        if not any(trial.status == "ok" for trial in self.search.history):
            return None
        return self.search.best()

    def _see(self, answers: Answers, block: int) -> bool:
        new = self.evaluator.right_answers(self.module, "validation", self.tasks, block)
        for task, right in new.items():
            answers[task] += right
        return bool(new)


def check_racing(trainer: Trainer, data: MultiTask) -> None:
    """Refuses data that racing has no rule for, before any long work.

    Args:
        trainer: The Trainer.
        data: The tasks.

    Raises:
        UserError: If a task is scored by anything but accuracy, or batches are left out.
    """
    for task in data.tasks:
        if not by_accuracy(data, task):
            raise UserError(
                f"--optimizer.racing: compares accuracies, but task '{task}' is scored by "
                f"{', '.join(data.metrics[task])}; leave racing out"
            )
    if trainer.limit_val_batches != 1.0 or isinstance(trainer.limit_val_batches, int):
        raise UserError(
            f"--optimizer.racing: needs the whole validation split, but limit_val_batches is "
            f"{trainer.limit_val_batches}; leave one of the two out"
        )


def race_facts(history: Sequence[Trial]) -> str:
    """Says what racing saved.

    Args:
        history: The trials.

    Returns:
        A sentence for the report.
    """
    stopped = [trial.partial for trial in history if trial.partial is not None]
    if not stopped:
        return "racing: no trial was stopped early"
    scored = sum(trial.objective is not None for trial in history)
    saved = sum(1 - one.examples / one.of for one in stopped) / scored
    return (
        f"racing: {len(stopped)} of {len(history)} trials were stopped early; {100 * saved:.1f}% "
        "of the examples of all trials were not scored"
    )


def _accuracy(right: Sequence[bool]) -> float:
    # the quotient of whole numbers that the metric takes, in the precision that it takes it in
    return float(torch.tensor(sum(right), dtype=torch.float32) / len(right))
