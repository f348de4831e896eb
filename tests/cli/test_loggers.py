"""A searched merge whose trials go to a logger, and the report of its making."""

import csv
import json

import pytest

from tests.cli.test_commands import data_config, experts, run

pytestmark = pytest.mark.slow


def test_the_trials_of_a_search_are_what_a_logger_gets(zoo, tmp_path):
    output, logs = tmp_path / "out", tmp_path / "logs"
    run(
        *["merge", "--config", data_config(zoo, tmp_path), *experts(zoo), "--base", zoo.base],
        *["--method", "TaskArithmetic", "--optimizer.search", "Dirichlet", "--output", output],
        *["--optimizer.search.draws", "2", "--trainer.logger", "CSVLogger"],
        *["--trainer.logger.save_dir", logs],
    )
    (file,) = logs.rglob("metrics.csv")
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    trials = [json.loads(line) for line in (output / "trials.jsonl").open()]
    assert len(rows) == len(trials) + 1  # the last has the test scores, and no pass its own
    for row, trial in zip(rows, trials, strict=False):
        assert float(row["trial/objective"]) == pytest.approx(trial["objective"], abs=1e-6)
        for name, value in trial["coefficients"].items():
            assert float(row[f"trial/coefficient/{name}"]) == pytest.approx(value, abs=1e-6)
    assert {name.partition("/")[0] for name in rows[0]} == {"step", "trial", "test"}
    page = (output / "report.html").read_text()
    assert "fmerge merge --config" in page and "--optimizer.search.draws 2" in page
    assert "wall time" in page and "trials took" in page
    text = (output / "report.md").read_text()
    assert "seed 0" in text and "wall time" not in text and "versions: fmerge " in text
