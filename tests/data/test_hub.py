"""Rows from every layout a data set comes in, all of them local."""

import datasets
import pytest

from fmerge.data.hub import read_rows
from fmerge.errors import UserError

ROWS = {"sentence": ["a", "b"], "label": [0, 1]}
CARD = """---
configs:
- config_name: cola
  data_files:
  - split: train
    path: cola/train-*
---
"""


def hub_folder(folder):
    (folder / "cola").mkdir(parents=True)
    datasets.Dataset.from_dict(ROWS).to_parquet(folder / "cola/train-00000-of-00001.parquet")
    (folder / "README.md").write_text(CARD)
    return str(folder)


@pytest.fixture
def saved(tmp_path):
    whole = datasets.DatasetDict({"train": datasets.Dataset.from_dict(ROWS)})
    whole.save_to_disk(tmp_path / "saved/cola")
    return tmp_path / "saved"


def test_every_layout_gives_the_rows(tmp_path, saved):
    single = tmp_path / "one.jsonl"
    single.write_text('{"sentence": "a", "label": 0}\n{"sentence": "b", "label": 1}\n')
    sources = [
        (hub_folder(tmp_path / "hub"), "cola"),
        (str(saved), "cola"),
        (str(saved / "cola"), None),
        (str(saved / "cola/train"), None),
        (str(single), None),
    ]
    for source, name in sources:
        table = read_rows(source, "train", name, ["sentence", "label"])
        assert {key: list(table[key]) for key in ROWS} == ROWS, source


def test_folders_of_one_name_are_not_mistaken_for_each_other(tmp_path):
    for parent, rows in (("a", ROWS), ("b", {"sentence": ["x"], "label": [1]})):
        source = hub_folder(tmp_path / parent / "glue")
        table = tmp_path / parent / "glue/cola/train-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows).to_parquet(table)
        assert list(read_rows(source, "train", "cola")["sentence"]) == rows["sentence"]


def test_what_is_lacking_is_said(tmp_path, saved, monkeypatch):
    hub = hub_folder(tmp_path / "hub")
    for source, split, name, columns, message in [
        (hub, "test", "cola", [], "hub/cola: cannot read its test split .*Unknown split"),
        (hub, "train", "rte", [], "hub/rte: cannot read its train split .*'rte' not found"),
        (hub, "train", "cola", ["x"], "no column 'x'; its columns: label, sentence"),
        (str(saved), "test", "cola", [], "saved/cola: has no test split; its splits: train"),
        (str(tmp_path / "no"), "train", None, [], "no: no such file or folder"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            read_rows(source, split, name, columns)
        assert "\n" not in str(caught.value)
