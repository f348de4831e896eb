"""The notebook of docs/ runs from its first cell to its last, and its figures hold."""

import ast
import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.pages import ROOT, page

TOUR = ROOT / "docs" / "tour.ipynb"


def outputs(cell, kind):
    return [one["data"][kind] for one in cell.outputs if kind in one.get("data", {})]


def test_the_notebook_has_outputs_and_no_errors():
    cells = [one for one in json.loads(TOUR.read_text())["cells"] if one["cell_type"] == "code"]
    assert any(one.get("data", {}).get("image/png") for one in cells[-1]["outputs"])
    assert not [one for cell in cells for one in cell["outputs"] if one["output_type"] == "error"]
    assert "tour.ipynb" in page("docs/index.md")


@pytest.mark.slow
def test_the_notebook_runs():
    notebook = nbformat.read(TOUR, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("results"))
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(TOUR.parent)}}
    ).execute()
    assert outputs(notebook.cells[-3], "image/png")
    results = ast.literal_eval(outputs(notebook.cells[-1], "text/plain")[0])
    tasks = list(results["base"])
    for task in tasks:
        assert results[f"expert {task}"][task] > results["base"][task] + 0.1

    def mean(name):
        return sum(results[name].values()) / len(tasks)

    # no merge beats the experts, and all beat the base
    best = sum(results[f"expert {task}"][task] for task in tasks) / len(tasks)
    for name in ("average", "TIES", "FisherMerge", "searched"):
        assert mean("base") < mean(name) < best
