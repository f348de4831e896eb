"""What is done with every trial of a run that has ended: it is timed, and shown to loggers."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from fmerge.report.merge_report import MergeReport
from fmerge.store import RunFolder, note_time


class TrialLog:
    """Notes how long each trial took, and logs it as a step of Lightning's loggers.

    Metrics are ``trial/objective``, ``trial/best``, ``trial/seconds``, ``trial/score/TASK`` and
    ``trial/coefficient/NAME``; the step is the trial's number. What is chosen in the end becomes
    hyperparameters, as a logger has one set of them for each run.

    Args:
        folder: The run's folder.
        loggers: The Trainer's.
        now: Tells the time, in seconds.
    """

    def __init__(
        self,
        folder: RunFolder,
        loggers: Sequence[Logger] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.loggers = list(loggers)
        self.now = now
        self._since = now()
        self._best = -math.inf

    def recall(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Learns of the trials of an interrupted run.

        Args:
            records: Those of ``trials.jsonl``; loggers have them already.
        """
        for record in records:
            self._improve(record)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Takes a trial that has ended.

        Args:
            record: As ``trials.jsonl`` has it.
        """
        now = self.now()
        seconds, self._since = now - self._since, now
        note_time(self.folder.times, record["trial"], seconds)
        self._improve(record)
        if not self.loggers:
            return
        values = {
            "objective": record["objective"],
            "best": self._best if math.isfinite(self._best) else None,
            "seconds": seconds,
            **{f"score/{task}": value for task, value in record["metrics"].items()},
            **{f"coefficient/{name}": value for name, value in record["coefficients"].items()},
        }
        found = {f"trial/{name}": one for name, one in values.items() if one is not None}
        for logger in self.loggers:
            logger.log_metrics(found, step=record["trial"])

    def conclude(self, report: MergeReport) -> None:
        """Logs what was chosen: its coefficients as hyperparameters, test scores as metrics.

        Args:
            report: The result.
        """
        chosen = {
            "method": report.search.method,
            "search": report.search.name,
            "trial": report.best.index,
            **{f"coefficient/{name}": one for name, one in report.best.coefficients.items()},
        }
        tested = {
            f"test/{row.name}/{task}": score
            for row in report.rows
            for task, score in row.scores.items()
        }
        for logger in self.loggers:
            logger.log_hyperparams(chosen)
            if tested:
                logger.log_metrics(tested, step=len(report.trials))
            logger.save()
            logger.finalize("success")

    def _improve(self, record: Mapping[str, Any]) -> None:
        if record["status"] == "ok" and record["objective"] is not None:
            self._best = max(self._best, record["objective"])


@contextmanager
def without_loggers(trainer: Trainer) -> Iterator[None]:
    """Keeps a Trainer's passes over data from its loggers, which are told of whole trials.

    Args:
        trainer: The Trainer.

    Yields:
        Nothing.
    """
    loggers = trainer.loggers
    trainer.loggers = []
    try:
        yield
    finally:
        trainer.loggers = loggers
