"""Pairs without a score from tables, and what is refused."""

import pytest

from fmerge.data import MultiTask, PairFiles
from fmerge.errors import UserError


def test_pairs(tmp_path):
    (tmp_path / "x.csv").write_text("query,answer,note\na,b,\nc,d,x\n")
    task = PairFiles(train=str(tmp_path / "x.csv"))
    assert list(task.examples("train")) == [
        {"text": "a", "text_pair": "b"},
        {"text": "c", "text_pair": "d"},
    ]
    assert task.labels == [] and task.labels.kind == "matches"
    assert list(task.metrics) == ["recall_at_1"]
    assert task.has("train") and not task.has("test")
    assert PairFiles(metrics=["mrr"]).metrics == ["mrr"]
    data = MultiTask({"t": task})
    assert len(data.fingerprint("t", "train")) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,answer\na,b\nc,\n", "x.csv, row 3, column 'answer': is empty; give it a text"),
        ("query,answer\n ,b\n", "x.csv, row 2, column 'query': is empty; give it a text, or"),
        ("query,reply\na,b\n", "x.csv: has no column 'answer'; its columns: query, reply"),
    ],
)
def test_unfit_tables_are_refused(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        PairFiles(train=str(tmp_path / "x.csv")).examples("train")
    with pytest.raises(UserError, match="no file is given for the test split; set test"):
        PairFiles(train=str(tmp_path / "x.csv")).examples("test")
