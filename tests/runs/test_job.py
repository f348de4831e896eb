"""One merge command: which way it goes, and that it is alone in its folder."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from fmerge import load_params
from fmerge.data import MultiTask, TextFiles
from fmerge.errors import UserError
from fmerge.evaluation.head_refit import Refitting
from fmerge.fisher import MERGE_DEFAULTS
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.methods import Isotropic, TaskArithmetic
from fmerge.modules import TextClassifier
from fmerge.runs import job as job_module
from fmerge.runs.job import MergeJob
from fmerge.search import Fixed, Sobol
from fmerge.store import lock_of, only_run
from fmerge.trainer import FMergeTrainer
from tests import tiny
from tests.evaluation.tiny_tasks import Given


def make(output, callbacks=(), **changes):
    options = {
        "trainer": Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=list(callbacks),
            enable_model_summary=False, enable_checkpointing=False,
        ),
        "model": TextClassifier(), "datamodule": None, "experts": {}, "output": output,
        "method": Isotropic(), "base": None, "fisher": MERGE_DEFAULTS, "baselines": "experts",
        "refitting": Refitting(), "overwrite": False, "dry_run": False, "build": None,
        "config": None,
    }  # fmt: skip
    return MergeJob(**(options | changes))


def test_the_trainers_optimizer_is_found_among_its_callbacks(tmp_path):
    own = MergeOptimizer(Sobol(trials=2))
    assert make(tmp_path, [Callback(), own]).optimizer is own
    other = make(tmp_path, [Callback()])
    assert other.optimizer.search is None and other.optimizer is other.optimizer


def test_a_dry_run_prices_the_run_and_writes_nothing(zoo, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(job_module, "show_merge_plan", lambda *args: shown.append(args))
    data = MultiTask({
        task: TextFiles(**zoo.tasks[task], labels=tiny.LABELS[task]) for task in zoo.tasks
    })
    output = tmp_path / "runs" / "out"
    optimizer = MergeOptimizer(Sobol(trials=5), target="animal", keep=0.5)
    made = make(
        output, [optimizer], datamodule=data, experts=zoo.experts, base=zoo.base,
        method=TaskArithmetic(), dry_run=True,
    )  # fmt: skip
    assert made.run() is None
    ((run, search, plan, where),) = shown
    assert where == output and not (tmp_path / "runs").exists()
    assert (plan.run, plan.trials, plan.own_scores, plan.resuming) == (run, 5, True, False)
    # the target's expert is first in the merge; coefficients are in the order that was given
    assert run.ensemble.names == ["animal", "colour"] and search.names == ("colour", "animal")
    assert search.bounds == {} and run.heads.keys() == {"animal", "colour"}
    assert run.data is data and run.settings is MERGE_DEFAULTS and run.baselines == "experts"


def test_a_merge_without_data_builds_what_it_was_given(zoo, tmp_path):
    half = Fixed({"colour": 0.5, "animal": 0.5})
    report = make(tmp_path / "out", [MergeOptimizer(half)], experts=zoo.experts).run()
    assert report.search.best.coefficients == {"colour": 0.5, "animal": 0.5}
    assert report.tests.rows == [] and (tmp_path / "out" / "merged" / "animal").is_dir()
    assert not lock_of(tmp_path / "out", folder=True).exists()


def test_given_coefficients_are_the_merge_without_a_search(zoo, tmp_path):
    """θ₀ + 0.6 τ₁ − 0.2 τ₂ of every tensor, and no option but --coefficients."""
    given = {"colour": 0.6, "animal": -0.2}
    report = make(
        tmp_path / "out", experts=zoo.experts, base=zoo.base, method=TaskArithmetic(),
        coefficients=given,
    ).run()  # fmt: skip
    assert report.best.coefficients == given and len(report.trials) == 1
    base, one, two = (
        load_params(path) for path in (zoo.base, zoo.experts["colour"], zoo.experts["animal"])
    )
    merged = load_params(tmp_path / "out" / "merged" / "colour")
    for name in (n for n in base if n.startswith("bert.") and base[n].is_floating_point()):
        expected = base[name] + 0.6 * (one[name] - base[name]) - 0.2 * (two[name] - base[name])
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)
    assert (
        "coefficients:\n  colour: 0.6\n  animal: -0.2" in (tmp_path / "out/config.yaml").read_text()
    )


def test_data_without_tasks_are_no_data(tmp_path):
    assert make(tmp_path, datamodule=MultiTask())._data() is None
    assert make(tmp_path)._data() is None


def test_a_second_run_in_the_folder_is_refused_and_the_lock_given_back(tmp_path):
    output = tmp_path / "out"
    with only_run(lock_of(output, folder=True)):
        with pytest.raises(UserError, match="out: another run is writing here"):
            make(output).run()
    with only_run(lock_of(output, folder=True)):  # given back, or this would be refused
        pass
    assert not output.exists()


@pytest.mark.parametrize("search", [None, Fixed(), Sobol(trials=2)])
def test_no_experts_are_refused_in_words_and_leave_no_folder(tmp_path, search):
    data = MultiTask({"x": Given(["p", "q"])}) if isinstance(search, Sobol) else None
    made = make(tmp_path / "out", [MergeOptimizer(search)], datamodule=data)
    with pytest.raises(UserError, match="--experts: names .*; a merge needs at least two experts"):
        made.run()
    assert not (tmp_path / "out").exists()


class Folder:
    """Says how it was asked."""

    def __init__(self):
        self.asked = []

    def check(self, overwrite):
        self.asked.append(overwrite)
        return not overwrite


@pytest.mark.parametrize(
    ("overwrite", "requeued", "asked"),
    [(False, False, False), (True, False, True), (True, True, False)],
)
def test_a_requeued_job_resumes_what_it_overwrote(monkeypatch, overwrite, requeued, asked):
    monkeypatch.setattr(job_module, "is_requeued", lambda trainer: requeued)
    folder = Folder()
    found = make(Path("out"), overwrite=overwrite)._look_into(folder)
    assert folder.asked == [asked] and found == (not asked, [])


def test_a_build_looks_for_its_trial_and_other_processes_look_for_nothing(monkeypatch):
    asked = []

    def find_trial(*args):
        asked.append(args)
        return ["the records"]

    monkeypatch.setattr(job_module, "find_trial", find_trial)
    folder = Folder()
    made = make(Path("out"), build=3, overwrite=True)
    assert made._look_into(folder) == (False, ["the records"])
    assert asked == [(folder, 3, True, False)] and folder.asked == []
    second = make(Path("out"), build=3, trainer=SimpleNamespace(is_global_zero=False))
    assert second._look_into(folder) == (False, []) and len(asked) == 1


def test_a_build_checks_inputs_before_it_writes(monkeypatch, tmp_path):
    events, run = [], SimpleNamespace(build=lambda *args: events.append(args[3:]) or "a report")
    monkeypatch.setattr(job_module, "fingerprints", lambda run: "hashes")
    monkeypatch.setattr(job_module, "show", lambda report, output: events.append((report, output)))
    monkeypatch.setattr(job_module, "with_redo", lambda report, *_: report)
    monkeypatch.setattr(MergeJob, "_long", lambda self, run, part: part())
    folder = SimpleNamespace(
        check_inputs=lambda hashes: events.append(hashes),
        begin_point=lambda index: events.append(index),
        point=lambda index: tmp_path / str(index),
    )
    report = make(tmp_path, build=3)._build(run, Sobol(), folder, ["records"])
    assert report == "a report"
    assert events == ["hashes", 3, (3, ["records"]), ("a report", tmp_path / "3")]


@pytest.mark.parametrize("module", ["TextClassifier", TextClassifier])
def test_names_and_paths_do_where_objects_are_wanted(zoo, tmp_path, module):
    trainer = FMergeTrainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[MergeOptimizer("Fixed")],
    )  # fmt: skip
    paths = {"colour": Path(zoo.experts["colour"]), "animal": {"path": zoo.experts["animal"]}}
    report = trainer.merge(module, experts=paths, output=str(tmp_path / "out"), method="Average")
    assert report is not None and (tmp_path / "out" / "merged").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "TextClasifier"}, "model: unknown name 'TextClasifier'; known: "),
        ({"fisher": "exact"}, "fisher: is 'exact', but must be FisherSettings, such as"),
        ({"fisher": {"examples": 3}}, "fisher: is {'examples': 3}, but must be FisherSettings"),
        ({"experts": "runs/a"}, "--experts: is 'runs/a', but must map each task's name to its"),
        ({"experts": ["runs/a"]}, r"--experts: is \['runs/a'\], but must map each task's name"),
    ],
)
def test_other_objects_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path / "out", **changes).run()
