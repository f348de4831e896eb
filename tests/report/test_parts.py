"""The parts of a report: its trials as a table, what its properties reach, its models."""

import math
import subprocess
import sys

from fmerge.report.parts import Provenance, Trials
from fmerge.search import Trial
from tests.made_up_report import made_up

NAN = math.nan


def equal(found, expected):
    """Whether lists of rows are equal, NaN to NaN."""
    return repr(found) == repr(expected)


def test_trials_as_a_table():
    trials = Trials([
        Trial(0, {"a": 0.25, "b": 0.5}, 0.75, {"a": 0.5, "b": 1.0}),
        Trial(1, {"a": 1.0, "b": 0.0}, status="failed", reason="nan"),
        Trial(2, {"a": 0.0, "b": 0.125}, 0.5, {"a": 0.5}, status="stopped"),
    ])
    assert trials[1].status == "failed" and len(trials) == 3
    frame = trials.to_dataframe()
    assert list(frame.columns) == [
        *["trial", "status", "objective"],
        *["coefficients.a", "coefficients.b", "metrics.a", "metrics.b"],
    ]
    assert equal(
        frame.values.tolist(),
        [
            [0, "ok", 0.75, 0.25, 0.5, 0.5, 1.0],
            [1, "failed", NAN, 1.0, 0.0, NAN, NAN],
            [2, "stopped", 0.5, 0.0, 0.125, 0.5, NAN],
        ],
    )
    assert [str(kind) for kind in frame.dtypes[2:]] == ["float64"] * 5
    assert str(frame.dtypes["trial"]) == "int64"


def test_trials_without_scores_have_an_objective_of_numbers():
    frame = Trials([Trial(0, {"a": 0.5})]).to_dataframe()
    assert list(frame.columns) == ["trial", "status", "objective", "coefficients.a"]
    assert str(frame["objective"].dtype) == "float64" and math.isnan(frame["objective"][0])
    assert list(Trials().to_dataframe().columns) == ["trial", "status", "objective"]


def test_a_report_is_read_by_short_names():
    report = made_up(["a", "b"])
    assert report.best is report.search.best and report.rows is report.tests.rows
    assert report.trials is report.search.trials and len(report.trials) == 31
    assert report.comparisons is report.tests.comparisons
    assert report.record()["trials"] == 31 and report.record()["search"] == "AxSearch"
    frame = report.trials.to_dataframe()
    assert frame["coefficients.a"].tolist() == [one.coefficients["a"] for one in report.trials]


def test_models_end_with_the_base():
    known = Provenance(experts={"a": "x", "b": "y"}, base="z", hashes={"expert": {"a": "12"}})
    assert known.models() == [("a", "x", "12"), ("b", "y", ""), ("base", "z", "")]
    assert Provenance(experts={"a": "x"}).models() == [("a", "x", "")]


def test_the_report_imports_nothing_heavy():
    code = (
        "import sys, fmerge.report.merge_report, fmerge.report.write, fmerge.report.model_card; "
        "print([name for name in ('matplotlib', 'jinja2', 'pandas', 'transformers') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
