"""Tables and pictures of runs."""

import io
import json
import re

import pytest
import torch
from markdown_it import MarkdownIt
from rich.console import Console

from fmerge.errors import UserError
from fmerge.fisher.summary import layer_of
from fmerge.merging.compatibility import task_vector_facts
from fmerge.merging.racing import race_facts
from fmerge.report.merge_report import MergeReport
from fmerge.report.pareto_front import Front
from fmerge.report.parts import Provenance, SearchOutcome, TestOutcome, Trials
from fmerge.report.plots import draw_search
from fmerge.report.score_table import compare
from fmerge.report.scores import Row
from fmerge.report.sections import layer_table, score_table
from fmerge.report.tables import to_rich
from fmerge.search import Pick, Trial
from fmerge.search.objective import Objective, Partial


def text(table) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(to_rich(table, notes=True))
    return console.export_text()


def line(table, name: str) -> list[str]:
    found = next(row for row in text(table).splitlines() if name in row)
    return [cell.strip() for cell in found.replace("┃", "│").split("│")[1:-1]]


ROWS = [
    Row("experts", {"a": 0.8, "b": 0.5}),
    Row("plain average", {"a": 0.6, "b": 0.5}),
]


def test_scores_means_and_shares():
    table = score_table(ROWS, "Test accuracy, %")
    assert line(table, "experts") == ["experts", "80.0", "50.0", "65.0", "100.0"]
    # retained: (0.6/0.8 + 0.5/0.5) / 2 of 100
    assert line(table, "plain average") == ["plain average", "60.0", "50.0", "55.0", "87.5"]


def test_runs_side_by_side(tmp_path):
    for name, method, rows in (
        ("x", "Average", ROWS),
        ("y", "DFMerge", [ROWS[0], Row("this merge", {"a": 0.6, "b": 0.4})]),
    ):
        (tmp_path / name).mkdir()
        record = {"method": method, "search": "AxSearch", "trials": 3}
        record["rows"] = [{"name": row.name, "scores": row.scores} for row in rows]
        (tmp_path / name / "scores.json").write_text(json.dumps(record))
    table = compare([tmp_path / "x", tmp_path / "y"])
    assert line(table, "DFMerge, AxSearch")[1:] == ["60.0", "40.0", "50.0", "77.5"]
    order = [text(table).index(name) for name in ("experts", "plain average", "DFMerge")]
    assert order == sorted(order)
    with pytest.raises(UserError, match="scores.json: no such file"):
        compare([tmp_path])
    other = (tmp_path / "y" / "scores.json").read_text().replace("0.8", "0.9")
    (tmp_path / "y" / "scores.json").write_text(other)
    with pytest.raises(UserError, match="its experts score otherwise"):
        compare([tmp_path / "x", tmp_path / "y"])


def test_refitted_heads_side_by_side(tmp_path):
    """Each of three runs has its own number of examples, and the third searched with them."""

    def run(name, refit_heads, examples, refitted):
        rows = [
            *[Row("base", {"a": 0.1, "b": 0.1}), Row("base, heads refitted", refitted), *ROWS],
            *([Row("plain average, heads refitted", refitted)] if refit_heads != "off" else []),
            Row("this merge", {"a": 0.4, "b": 0.5}),
            *([Row("this merge, heads refitted", refitted)] if refit_heads != "off" else []),
        ]
        best = Trial(0, {"a": 0.5, "b": 0.5}, 0.7)
        report = MergeReport(
            search=SearchOutcome(method="TIES", name="Grid", best=best, trials=Trials([best] * 3)),
            tests=TestOutcome(rows=rows, refit_heads=refit_heads, refit_examples=examples),
            provenance=Provenance(experts={"a": "x", "b": "y"}),
        )
        assert report.record()["trials"] == 3
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(report.record()))
        return report.markdown()

    text_of_off = run("off", "off", None, {"a": 0.7, "b": 0.4})
    assert "is fitted to the body on all of its training examples.\n" in text_of_off
    assert "at most 512 of its training examples; the merge is saved with these heads.\n" in run(
        "end", "end", 512, {"a": 0.6, "b": 0.3}
    )
    run("trials", "trials", 99, {"a": 0.5, "b": 0.2})
    table = compare([tmp_path / name for name in ("trials", "end", "off")])
    names = [one.split("│")[1].strip() for one in text(table).splitlines() if "│" in one]
    assert names[:3] == ["base"] + [f"base, heads refitted on {n}" for n in (99, 512)]
    assert names[3:7] == [
        *["base, heads refitted", "experts", "plain average"],
        "plain average, heads refitted on 99",
    ]
    assert names[7:] == [
        "plain average, heads refitted on 512",
        "TIES, Grid for refitted heads",
        "TIES, Grid for refitted heads, heads refitted on 99",
        "TIES, Grid",
        "TIES, Grid, heads refitted on 512",
    ]
    assert line(table, "TIES, Grid, heads refitted on 512")[1:3] == ["60.0", "30.0"]
    run("other", "end", 512, {"a": 0.9, "b": 0.3})
    with pytest.raises(UserError, match="its row 'base, heads refitted on 512' scores otherwise"):
        compare([tmp_path / "end", tmp_path / "other"])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert.encoder.layer.11.output.dense.weight", "bert.encoder.layer.11"),
        ("bert.embeddings.word_embeddings.weight", "bert.embeddings"),
        ("bert.pooler.dense.bias", "bert.pooler"),
        ("classifier.weight", "classifier"),
        ("scale", "scale"),
    ],
)
def test_layers_are_cut_from_names(name, layer):
    assert layer_of(name) == layer


def test_the_fisher_by_layer():
    values = {"m.0.w": torch.full((2, 2), 0.5), "m.0.b": torch.zeros(4), "head.w": torch.ones(6)}
    table = layer_table(values, "Fisher")
    assert line(table, "m.0") == ["m.0", "8", "2.50e-01", "25.0"]
    assert line(table, "head") == ["head", "6", "1.00e+00", "75.0"]


def test_the_picture_is_drawn_with_failures(tmp_path):
    trials = [
        Trial(0, {"a": 0.1}, 0.5),
        Trial(1, {"a": 0.2}, status="failed", reason="nan"),
        Trial(2, {"a": 0.3}, 0.7),
    ]
    draw_search(trials, tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["search.png"]


def test_the_picture_shows_what_fell_below_its_bounds(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, steps = {}, {}
    plot, step = Axes.plot, Axes.step

    def spy_plot(self, x, y, *style, **options):
        drawn[options.get("label")] = list(x), list(y)
        return plot(self, x, y, *style, **options)

    def spy_step(self, x, y, **options):
        steps.update(zip(x, y, strict=True))
        return step(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", spy_plot)
    monkeypatch.setattr(Axes, "step", spy_step)
    scores = [(0.9, 0.1), (0.5, 0.6), (0.8, 0.2), (0.6, 0.7)]
    trials = [Trial(i, {}, first, {"a": second}) for i, (first, second) in enumerate(scores)]
    draw_search(trials, tmp_path / "search.png", Objective("worst", bounds={"a": 0.5}))
    assert drawn["below bounds"] == ([0, 2], [90.0, 80.0])
    assert str(steps) == "{0: nan, 1: 50.0, 2: 50.0, 3: 60.0}"


def test_the_picture_shows_stopped_trials_apart(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, steps = {}, []
    plot, step = Axes.plot, Axes.step

    def spy_plot(self, x, y, *style, **options):
        drawn[options.get("label")] = list(x), list(y)
        return plot(self, x, y, *style, **options)

    def spy_step(self, x, y, **options):
        steps.extend(y)
        return step(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", spy_plot)
    monkeypatch.setattr(Axes, "step", spy_step)
    trials = [
        Trial(0, {}, 0.5, {"a": 0.5}),
        Trial(1, {}, 0.25, {"a": 0.25}, "stopped", partial=Partial(4, 8, 0.1)),
        Trial(2, {}, 0.75, {"a": 0.75}),
    ]
    draw_search(trials, tmp_path / "search.png")
    assert drawn["trial"] == ([0, 2], [50.0, 75.0]) and steps == [50.0, 75.0]
    assert drawn["stopped early"] == ([1], [25.0])
    assert race_facts(trials) == (
        "racing: 1 of 3 trials were stopped early; 16.7% of the examples of all trials were not "
        "scored"
    )
    assert race_facts(trials[::2]) == "racing: no trial was stopped early"


def test_the_report_of_a_search_with_bounds_and_a_model():
    def report(metrics, pick):
        best = Trial(4, {"a/x": 0.25, "a/y": 0.5, "b/x": 0.75, "b/y": 1.0}, 0.7, metrics)
        goal = Objective("worst", bounds={"a": 0.72, "b": 0.4})
        experts = {"a": "path/a", "b": "path/b"}
        search = SearchOutcome(
            method="TIES",
            name="AxSearch",
            best=best,
            trials=Trials([best] * 9),
            goal=goal,
            groups=["x", "y"],
            pick=pick,
        )
        tests, provenance = TestOutcome(rows=ROWS), Provenance(experts=experts)
        return MergeReport(search=search, tests=tests, provenance=provenance).markdown()

    fine = report({"a": 0.75, "b": 0.7}, Pick(Trial(6, {}, 0.69), 0.685, 0.004))
    assert "- coefficients of a: x 0.2500, y 0.5000\n- coefficients of b: x 0.7500" in fine
    assert "- search: AxSearch, 9 trials; the best is trial 4\n" in fine
    assert "chosen on the validation split by the worst task's score (objective 70.0)" in fine
    assert "- lower bounds on validation: a 72.0, b 40.0; the best trial meets them\n" in fine
    assert (
        "- chosen by its observed score: trial 4, 70.0; the search's model would choose "
        "trial 6, 68.5 ± 0.4 predicted\n" in fine
    )
    short = report({"a": 0.7, "b": 0.8}, Pick(Trial(4, {}, 0.7), 0.685, 0.004))
    assert "NO TRIAL meets them" in short and "the smallest shortfall: a by 2.0\n" in short
    assert "would choose the same trial, 68.5" in short
    sure = report({"a": 0.7, "b": 0.8}, Pick(Trial(4, {}, 1.0), 1.002, 0.013))
    assert "would choose the same trial, 100.0 (98.9 to 100.0) predicted\n" in sure


def test_task_vectors_are_told_by_length_and_direction():
    base = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])}
    bodies = {
        "x": {"w": torch.tensor([3.5, 4.0]), "b": torch.tensor([0.0])},
        "y": {"w": torch.tensor([4.0, 5.0]), "b": torch.tensor([0.0])},
    }
    # τ = (0.5, 0) and (1, 1) beside a base of norm 5; the angle between them is 45°
    assert task_vector_facts(base, bodies) == (
        "`x` 10.0%, `y` 28.3% of the base's norm; cosines: `y` and `x` 0.71"
    )


def test_the_front_escapes_names_in_all_forms():
    task = "a|<b>*c*"
    objectives = {"mean": 0.5, task: 0.25}
    trials = [Trial(4, {task: 0.125}, 0.5, {task: 0.25, "d|e": 0.75}, objectives=objectives)]
    front = Front(["mean", task], trials)
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render("\n".join(front.markdown()))
    assert re.findall("<t[hd][^>]*>(.*?)</t[hd]>", rendered) == [
        *["trial", "mean", "a|&lt;b&gt;*c*", "d|e", "coefficients"],
        *["4", "50.0", "25.0", "75.0", "a|&lt;b&gt;*c* 0.1250"],
    ]
    assert "merged/ holds trial 4, the best by mean; " in text(front.table())
    assert line(front.table(), "0.1250") == ["4", "50.0", "25.0", "75.0", f"{task} 0.1250"]
