"""Tables and pictures of runs."""

import json

import pytest
import torch
from rich.console import Console

from fmerge.errors import UserError
from fmerge.picture import draw_search
from fmerge.report import Row, compare, fisher_table, layer_of, score_table
from fmerge.search import Trial


def text(table) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(table)
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
    # kept: (0.6/0.8 + 0.5/0.5) / 2 of 100
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
    table = fisher_table(values, "Fisher")
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
