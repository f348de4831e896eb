"""What a dry run prints, by value."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fmerge.data import MultiTask
from fmerge.evaluation.passes import Pass, Passes
from fmerge.fisher import FisherSettings
from fmerge.methods import Average, DFMerge, RegMean, TaskArithmetic
from fmerge.runs import dry_run
from fmerge.runs.dry_run import show_merge_plan, total_seconds
from fmerge.search import SearchSpace, Sobol
from tests.evaluation.tiny_tasks import Given

MIB = 2**20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "0.012 s"), (1.25, "1.2 s"), (59.4, "59 s"), (60, "1 min"), (90, "2 min"),
        (7199, "120 min"), (7200, "2.0 h"), (36000 * 3, "30.0 h"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert dry_run._duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 MiB"), (1.5 * MIB, "1.5 MiB"), (2345 * MIB, "2,345.0 MiB")]
)
def test_sizes(size, text):
    assert dry_run._mib(size) == text


def test_seconds_are_those_of_a_batch_times_the_batches():
    passes = Passes({
        Pass("score", "x", "validation", 10): 3,  # 2 batches a process
        Pass("score", "x", "test", 5): 1,  # 1
        Pass("Fisher", "x", "train", 9): 2,  # 2
        Pass("score", "y", "test", 1): 4,  # 1
    })
    measured = {("score", "x"): 1.0, ("Fisher", "x"): 10.0, ("score", "y"): 100.0}
    data = MultiTask(batch_size=4)
    assert total_seconds(passes, measured, data, processes=2) == 3 * 2 + 1 + 2 * 2 * 10 + 4 * 100
    # 3, 2, 3 and 1 batches for one process
    assert total_seconds(passes, measured, data, processes=1) == 3 * 3 + 2 + 2 * 3 * 10 + 4 * 100
    assert total_seconds({}, {}, data, 1) == 0


def trainer(**more):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(strategy=strategy, world_size=1, is_global_zero=True, **more)


def test_each_kind_of_pass_is_measured_once_task_by_task(monkeypatch):
    monkeypatch.setattr(dry_run, "free_memory", lambda device: None)
    asked = []

    def measure(cost, task):
        asked.append((cost, task))
        return {"score": 2.0, "Fisher": 60.0}[cost]

    passes = Passes({
        Pass("score", "y", "test", 4): 1,
        Pass("score", "x", "test", 4): 2,
        Pass("Fisher", "x", "train", 4): 1,
        Pass("score", "x", "train", 4): 1,
    })
    text = dry_run._time(trainer(), MultiTask(batch_size=4), passes, 10, measure)
    assert text == "about 1 min: an estimate from one batch of 4 (1 min)"
    assert asked == [("Fisher", "x"), ("score", "x"), ("score", "y")]


def test_a_batch_that_cannot_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(dry_run, "free_memory", lambda device: SimpleNamespace(free=5 * MIB))

    def measure(cost, task):
        raise AssertionError("it was tried")

    passes = Passes({Pass("score", "x", "test", 4): 1})
    text = dry_run._time(trainer(), MultiTask(), passes, 6 * MIB, measure)
    assert text == "not measured: a batch takes 6.0 MiB or more, of which 5.0 MiB are free"


def test_the_least_free_memory_decides(monkeypatch):
    free = {"cpu": SimpleNamespace(free=5 * MIB), "cuda": SimpleNamespace(free=3 * MIB)}
    monkeypatch.setattr(dry_run, "free_memory", lambda device: free[device.type])
    both = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")))
    assert dry_run._free(both) == "; 3.0 MiB free"
    free["cuda"] = None
    assert dry_run._free(both) == "; 5.0 MiB free"
    free["cpu"] = None
    assert dry_run._free(both) == ""


def merge_of(method, base, **settings):
    """Two bodies of 2 MiB, with a head of 1 MiB each."""
    body = {"w": torch.zeros(MIB // 2, dtype=torch.float16)}

    def network():
        model = torch.nn.Module()
        model.w = torch.nn.Parameter(body["w"])
        model.head = torch.nn.Parameter(torch.zeros(MIB // 4))
        return model

    networks = {"x": network(), "y": network()}
    ensemble = SimpleNamespace(
        bodies={"x": body, "y": body},
        models=networks,
        networks=networks,
        base=body if base else None,
        sources={"x": "made/x", "y": "made/y"},
        base_source="made/base" if base else None,
    )
    return SimpleNamespace(
        ensemble=ensemble, method=method, settings=FisherSettings(**settings), trainer=trainer(),
        data=None, forms={}, adapter=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "base", "settings", "memory"),
    [
        (Average(), False, {}, "parameters 8.0 MiB (4 bodies)"),  # the merge and the live one too
        (TaskArithmetic(), True, {}, "parameters 10.0 MiB (5 bodies)"),
        (DFMerge(), True, {}, "parameters 10.0 MiB (5 bodies), Fishers 4.0 MiB (2)"),
        (DFMerge(), True, {"curve": 3}, "parameters 10.0 MiB (5 bodies), Fishers 12.0 MiB (6)"),
        (RegMean(), False, {"curve": 3}, "parameters 8.0 MiB (4 bodies), Grams 0.0 MiB (2)"),
    ],
)
def test_memory_is_that_of_bodies_and_statistics(method, base, settings, memory):
    assert dry_run._memory(merge_of(method, base, **settings)) == memory


def shown(monkeypatch, run, resuming=False, output=Path("absent/folder/out")):
    tables = []
    monkeypatch.setattr(dry_run, "_show", lambda trainer, rows: tables.append(rows))
    monkeypatch.setattr(dry_run, "free_memory", lambda device: None)
    usage = SimpleNamespace(free=100 * MIB)
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda place: usage)
    plan = SimpleNamespace(resuming=resuming, passes=Passes)
    search = Sobol(trials=7)
    search.start(SearchSpace(("x", "y")))
    show_merge_plan(run, search, plan, output)
    return tables[0]


def test_a_merge_without_data_is_described(monkeypatch):
    assert shown(monkeypatch, merge_of(TaskArithmetic(), True)) == {
        "expert x": "made/x",
        "expert y": "made/y",
        "base": "made/base",
        "method": "TaskArithmetic",
        "search": "Sobol, 7 trials",
        "memory": "parameters 10.0 MiB (5 bodies), and what a batch takes",
        "disk": "6.0 MiB (2 merged models); 100.0 MiB free",  # with heads
    }


def test_a_resumed_merge_says_so_and_tells_its_tasks(monkeypatch):
    run = merge_of(Average(), False)
    ten = [{"text": "red", "label": 0}] * 10
    run.data = MultiTask({"x": Given(["p", "q"], validation=ten, test=ten[:4])})
    rows = shown(monkeypatch, run, resuming=True)
    assert rows["search"] == "Sobol, 7 trials, after those that the output folder has"
    assert rows["task x"] == "10 validation examples, 4 test examples" and "base" not in rows
    assert rows["time"].endswith(", without the formula's own")


def test_only_the_first_process_prints_and_lines_stay_whole(capsys):
    path = "a/very/long/path/" * 20
    other = trainer()
    other.is_global_zero = False
    dry_run._show(other, {"expert x": path})
    assert capsys.readouterr().out == ""
    dry_run._show(trainer(), {"expert x": path})
    printed = capsys.readouterr().out
    assert path in printed and "nothing was written" in printed and dry_run.LEFT in printed


def test_the_disk_is_that_of_the_nearest_folder_that_exists(monkeypatch, tmp_path):
    asked = []

    def usage(place):
        asked.append(place)
        return SimpleNamespace(free=MIB)

    monkeypatch.setattr(dry_run.shutil, "disk_usage", usage)
    assert dry_run._room(tmp_path / "not" / "there") == "; 1.0 MiB free"
    assert asked == [tmp_path]
