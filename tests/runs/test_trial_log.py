"""Trials in Lightning's loggers, read back, and how long they took."""

import csv

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from fmerge.report.merge_report import MergeReport
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome, Trials
from fmerge.report.scores import Row
from fmerge.runs.trial_log import TrialLog
from fmerge.search import Trial
from fmerge.store import RunFolder, note_time, read_times

TRIALS = [
    Trial(0, {"a": 0.25, "b": 0.5}, 0.75, {"a": 0.5, "b": 1.0}),
    Trial(1, {"a": 1.0, "b": 0.0}, status="failed", reason="nan"),
    Trial(2, {"a": 0.5, "b": 0.5}, 0.625, {"a": 0.25, "b": 1.0}),
]


def logged(tmp_path, logger, known=0):
    """Logs the trials; trial i takes i + 1 seconds."""
    times = iter([0.0, 1.0, 3.0, 6.0])
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.start({})
    log = TrialLog(folder, [logger] if logger else [], lambda: next(times))
    folder.listeners = [log]
    log.recall([one.as_record() for one in TRIALS[:known]])
    for trial in TRIALS:
        folder.append(trial.as_record())
    search = SearchOutcome(method="TIES", name="Sobol", best=TRIALS[0], trials=Trials(TRIALS))
    rows = [Row("experts", {"a": 0.5, "b": 0.75}), Row("this merge", {"a": 0.25, "b": 0.5})]
    provenance = Provenance(experts={"a": "x", "b": "y"})
    log.conclude(MergeReport(search=search, tests=TestOutcome(rows=rows), provenance=provenance))
    return folder


def test_times_are_kept_apart_from_the_log(tmp_path):
    folder = logged(tmp_path, None)
    assert read_times(folder.times, 3) == {0: 1.0, 1: 2.0, 2: 3.0}
    assert "seconds" not in (folder.path / "trials.jsonl").read_text()
    note_time(folder.times, 1, 7.0)  # made again
    with folder.times.open("a") as notes:
        notes.write("1 9.")  # cut off by a kill
    assert read_times(folder.times, 2) == {0: 1.0, 1: 7.0}
    folder.start({})
    assert read_times(folder.times, 3) == {}


def test_trials_in_a_csv_file(tmp_path):
    logger = CSVLogger(tmp_path / "log", name="", version="")
    logged(tmp_path, logger)
    with (tmp_path / "log" / "metrics.csv").open() as file:
        first, second, third, last = csv.DictReader(file)
    assert [one["step"] for one in (first, second, third)] == ["0", "1", "2"]
    assert float(first["trial/objective"]) == 0.75 and float(third["trial/best"]) == 0.75
    assert float(third["trial/score/a"]) == 0.25 and float(second["trial/seconds"]) == 2.0
    assert second["trial/objective"] == "" and float(second["trial/coefficient/a"]) == 1.0
    assert float(last["test/this merge/b"]) == 0.5 and last["step"] == "3"
    hparams = yaml.safe_load((tmp_path / "log" / "hparams.yaml").read_text())
    assert hparams == {
        **{"method": "TIES", "search": "Sobol", "trial": 0},
        **{"coefficient/a": 0.25, "coefficient/b": 0.5},
    }


def test_trials_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged(tmp_path, TensorBoardLogger(tmp_path, name="", version=""))
    found = EventAccumulator(str(tmp_path)).Reload()
    objective = found.Scalars("trial/objective")
    assert [(one.step, one.value) for one in objective] == [(0, 0.75), (2, 0.625)]
    assert [one.value for one in found.Scalars("trial/coefficient/b")] == [0.5, 0.0, 0.5]
    assert [one.value for one in found.Scalars("test/experts/b")] == [0.75]
    hparams = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
    assert hparams["coefficient/a"] == 0.25 and hparams["method"] == "TIES"


def test_the_best_so_far_counts_trials_before_an_interruption(tmp_path):
    logger = CSVLogger(tmp_path / "log", name="", version="")
    logged(tmp_path, logger, known=1)
    with (tmp_path / "log" / "metrics.csv").open() as file:
        assert [row["trial/best"] for row in csv.DictReader(file)][:3] == ["0.75"] * 3
