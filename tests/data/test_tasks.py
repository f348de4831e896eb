"""Loaders that give every example once, whatever the batch size and the process."""

import json
from types import SimpleNamespace

import pytest
import torch

from fmerge.data import MultiTask, TaskData, TextFiles
from fmerge.errors import UserError


class Numbers(TaskData):
    """Task data whose texts are numbers of different lengths."""

    labels = ["even", "odd"]

    def examples(self, split):
        n = {"train": 10, "validation": 13, "test": 0}[split]
        return [{"text": "x" * (i * 7 % n), "label": i % 2, "id": i} for i in range(n)]


def data(rank=0, processes=1, **options):
    made = MultiTask({"a": Numbers(), "b": Numbers()}, **options)
    made.trainer = SimpleNamespace(
        world_size=processes,
        global_rank=rank,
        lightning_module=SimpleNamespace(
            collate=lambda examples, task: {"ids": [e["id"] for e in examples], "task": task}
        ),
    )
    return made


def ids(loader):
    return [i for batch in loader for i in batch["ids"]]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_example_is_given_once_over_all_processes(processes):
    loaders = [data(r, processes, batch_size=4).val_dataloader() for r in range(processes)]
    assert all(list(one) == ["a", "b"] for one in loaders)
    seen = [i for one in loaders for i in ids(one["a"])]
    assert sorted(seen) == list(range(13))
    # the r-th process has the examples r, r + processes, … of the order of one process
    order = ids(data(batch_size=4).val_dataloader()["a"])
    assert [ids(one["a"]) for one in loaders] == [order[r::processes] for r in range(processes)]


def test_chosen_examples_are_fixed_by_the_seed():
    made = data()
    chosen = [set(ids(made.loaders("validation", ["a"], 5, seed)["a"])) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 5
    assert made.loaders("validation", ["a"])["a"] is made.loaders("validation", ["a"])["a"]
    assert len(ids(made.loaders("validation", ["a"], 99)["a"])) == 13


def test_training_is_shuffled_and_complete():
    torch.manual_seed(0)
    made = data(batch_size=3)
    loader = made.train_dataloader()["a"]
    once, again = ids(loader), ids(loader)
    assert sorted(once) == sorted(again) == list(range(10)) and once != again
    assert ids(made.train_dataloader()["a"]) == once  # the order follows from seed and pass


def test_a_restored_loader_gives_what_was_left_and_then_the_same_passes():
    torch.manual_seed(0)
    whole = data(batch_size=3).train_dataloader()["a"]
    passes = [ids(whole), ids(whole), ids(whole)]
    stopped = data(batch_size=3).train_dataloader()["a"]
    ids(stopped)
    iterator = iter(stopped)
    next(iterator), next(iterator)
    torch.manual_seed(1)  # another process, which need not have the same seed
    made = data(batch_size=3)
    made.load_state_dict({"a": stopped.state_dict()})
    resumed = made.train_dataloader()["a"]
    assert [ids(resumed), ids(resumed)] == [passes[1][6:], passes[2]]
    at_the_end = data(batch_size=3)
    at_the_end.load_state_dict({"a": {"seed": 0, "pass": 1, "batches": len(whole)}})
    assert ids(at_the_end.train_dataloader()["a"]) == passes[2]


def test_unknown_tasks_and_empty_splits_are_refused():
    with pytest.raises(UserError, match="unknown task 'c'; the data has: a, b"):
        data().only_task("c")
    with pytest.raises(UserError, match="task 'a': its test split is empty"):
        data().test_dataloader()
    with pytest.raises(UserError, match="batch_size: is 0"):
        data(batch_size=0)


def test_files_of_every_kind_read_alike(tmp_path):
    rows = [{"s": "one cat", "p": "a", "y": "no"}, {"s": "two, dogs", "p": "b", "y": "yes"}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "x.csv").write_text('s,p,y\none cat,a,no\n"two, dogs",b,yes\n')
    import pandas

    pandas.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.csv", "x.parquet"):
        task = TextFiles(train=str(tmp_path / name), text="s", text_pair="p", label="y")
        assert task.labels == ["no", "yes"]
        assert task.examples("train") == [
            {"text": "one cat", "label": 0, "text_pair": "a"},
            {"text": "two, dogs", "label": 1, "text_pair": "b"},
        ]


def test_label_numbers_are_taken_as_they_are(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,1\nb,0\n")
    task = TextFiles(test=str(tmp_path / "x.csv"), labels=["no", "yes"])
    assert [row["label"] for row in task.examples("test")] == [1, 0]
    with pytest.raises(UserError, match="no file is given for the train split"):
        task.examples("train")


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="x.json: cannot read its train split"):
        TextFiles(train=str(tmp_path / "x.json")).examples("train")
    (tmp_path / "x.dat").write_text("a")
    with pytest.raises(UserError, match="unknown ending; known: .csv, .json, .jsonl, .parquet"):
        TextFiles(train=str(tmp_path / "x.dat"))
