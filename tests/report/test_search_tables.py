"""The tables of a search: all trials, and coefficients by group of tensors."""

from fmerge.report.parts import SearchOutcome, Trials
from fmerge.report.search_tables import all_trials, heat_map
from fmerge.report.tables import to_markdown
from fmerge.search import Trial

TRIALS = [
    Trial(0, {"a": 0.25, "b": 0.5}, 0.75, {"a": 0.5, "b": 1.0}),
    Trial(1, {"a": 1.0, "b": 0.0}, status="failed", reason="nan"),
    Trial(2, {}, 0.8, {"a": 0.6, "b": 1.0}, stage="polish"),
]


def outcome(trials, **options):
    return SearchOutcome(
        method="TIES", name="Sobol", best=trials[-1], trials=Trials(trials), **options
    )


def test_every_trial_has_a_row():
    table = all_trials(outcome(TRIALS, seconds={0: 1.5, 2: 4.0}))
    lines = to_markdown(table)
    assert lines[3:] == [
        "| trial | of | status | objective | a | b | λ a | λ b | seconds |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 0 | search | ok | 75.0 | 50.0 | 100.0 | 0.2500 | 0.5000 | 1.5 |",
        "| 1 | search | failed | - | - | - | 1.0000 | 0.0000 | - |",
        "| 2 | polish | ok | 80.0 | 60.0 | 100.0 | - | - | 4.0 |",
        *["", "2 trials took 5.5 s, 2.8 s each."],
    ]
    assert table.sortable and [line.own for line in table.lines] == [False, False, True]


def test_a_text_has_no_times_and_so_many_trials():
    trials = [Trial(i, {"a": 0.5}, 0.5, {"a": 0.5}) for i in range(130)]
    table = all_trials(outcome(trials, seconds={0: 1.0}), timed=False)
    assert len(table.lines) == 100 and not table.sortable
    assert [column.name for column in table.columns][-1] == "λ a"
    assert table.notes == ["The first 100 of 130 trials; `trials.jsonl` has all."]
    assert len(all_trials(outcome(trials)).lines) == 130
    assert all_trials(outcome(trials[:1])) is None


def test_very_many_coefficients_have_no_columns():
    trials = [Trial(i, {f"a/{k}": 0.5 for k in range(25)}, 0.5, {"a": 0.5}) for i in range(2)]
    table = all_trials(outcome(trials))
    assert len(table.columns) == 4
    assert table.notes == ["Their 25 coefficients are in `trials.jsonl`."]


def test_coefficients_by_layer_are_a_heat_map():
    best = Trial(0, {"x/y/l.0": 0.5, "x/y/l.1": -1.0, "b/l.0": 0.25, "b/l.1": 1.0, "density": 0.3})
    table = heat_map(best, ["x/y", "b"])
    assert to_markdown(table)[3:] == [
        "| tensors | x/y | b |",
        "| --- | ---: | ---: |",
        "| `l.0` | 0.5000 | 0.2500 |",
        "| `l.1` | -1.0000 | 1.0000 |",
    ]
    assert [[cell.heat for cell in line.cells[1:]] for line in table.lines] == [
        [0.5, 0.25], [-1.0, 1.0],
    ]  # fmt: skip
    assert heat_map(Trial(0, {"x/y": 0.5, "b": 1.0}), ["x/y", "b"]) is None
