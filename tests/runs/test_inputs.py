"""What a merge is given: refused before any long work, and known again by its hashes."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from fmerge.data import MultiTask
from fmerge.errors import UserError
from fmerge.evaluation.head_refit import Refitting
from fmerge.evaluation.statistics import statistic_of
from fmerge.fisher import FisherSettings
from fmerge.methods import Average, DFMerge, RegMean
from fmerge.modules import TextClassifier
from fmerge.runs import inputs
from fmerge.runs.inputs import check_data, check_merge, fingerprints, task_module, tasks_of
from fmerge.search import AxSearch, Fixed, SearchSpace, Sobol
from tests.evaluation.tiny_tasks import Given


def example(label, text="red"):
    return {"text": text, "label": label}


def task(metrics=("accuracy",), **splits):
    whole = {split: [example(0), example(1)] for split in ("train", "validation", "test")}
    return Given(["p", "q"], metrics, **whole | splits)


def run(method=None, data=None, batch_size=4, processes=1, when="off", **settings):
    method = method or Average()
    trainer = SimpleNamespace(limit_val_batches=1.0, world_size=processes)
    tasks = {"x": task(), "y": task()} if data is None else data
    return SimpleNamespace(
        trainer=trainer,
        module=TextClassifier(),
        data=MultiTask(tasks, batch_size) if tasks else None,
        method=method,
        settings=FisherSettings(**settings),
        refitting=Refitting(when),
        probed=False,
        estimated=statistic_of(method),
        ensemble=SimpleNamespace(models={}, heads_merged=False),
    )


def refusal(made, search=None, grouped=False, racing=False):
    with pytest.raises(UserError) as refused:
        check_merge(made, search or Sobol(), grouped, racing)
    return str(refused.value)


def check(made, search=None, grouped=False, racing=False):
    check_merge(made, search or Sobol(), grouped, racing)


def test_models_and_data_of_the_users_own():
    module, data = TextClassifier(), MultiTask()
    assert task_module(module) is module and tasks_of(data) is data
    with pytest.raises(UserError, match="--model: LightningModule does not say what its tasks"):
        task_module(LightningModule())
    with pytest.raises(UserError, match="--data: LightningDataModule names no tasks; use MultiTa"):
        tasks_of(LightningDataModule())


def test_data_to_fit_on():
    check_data(LightningDataModule())
    check_data(None)
    check_data(MultiTask({"x": task()}))
    with pytest.raises(UserError, match="--data.batch_size: is auto, which fisher and merge"):
        check_data(MultiTask({"x": task()}, batch_size="auto"))
    with pytest.raises(UserError, match="--data.tasks: is not set"):
        check_data(MultiTask())


def test_what_is_whole_passes():
    check(run())
    check(run(RegMean()), grouped=True)
    check(run(DFMerge(), curve=3))
    check(run(DFMerge()), grouped=True)
    check(run(), racing=True)
    check(run(data={}))


def test_a_curve_has_one_coefficient():
    line = refusal(run(DFMerge(), curve=3), grouped=True)
    assert line.startswith("--fisher.curve: a Fisher is a curve over one coefficient, but --opti")


def test_a_statistic_needs_data():
    assert refusal(run(DFMerge(), data={})) == (
        "DFMerge: needs data to estimate Fishers on; give --data"
    )
    assert "RegMean: needs data to estimate Grams on" in refusal(run(RegMean(), data={}))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_splits_that_choose_and_score_must_have_examples(split):
    line = refusal(run(data={"x": task(), "y": task(**{split: []})}))
    assert line == f"task 'y': its {split} split is empty"


def test_the_split_of_an_estimate_must_have_examples():
    data = {"x": task(train=[]), "y": task()}
    assert "task 'x': its train split is empty" in refusal(run(DFMerge(), data, split="train"))
    check(run(DFMerge(), data, split="validation"))
    check(run(Average(), data, split="train"))  # which estimates nothing


def test_racing_asks_for_accuracies():
    line = refusal(run(data={"x": task(), "y": task(["f1"])}), racing=True)
    assert "--optimizer.racing: compares accuracies, but task 'y' is scored by f1" in line
    check(run(data={"x": task(), "y": task(["f1"])}))


def test_an_automatic_batch_size_where_batches_do_not_matter():
    check(run(batch_size="auto"))
    check(run(DFMerge(), batch_size="auto"))
    for made in (
        run(DFMerge(), batch_size="auto", estimator="rademacher"),
        run(DFMerge(), batch_size="auto", standard_error=True),
        run(DFMerge(), batch_size="auto", until=0.1),
        run(batch_size="auto", processes=2),
    ):
        assert "--data.batch_size: is auto, but " in refusal(made)
    # a method that estimates nothing does not care how Fishers would be
    check(run(batch_size="auto", estimator="rademacher"))


def test_binomial_noise_is_that_of_an_accuracy():
    data = {"x": task(), "y": task(["accuracy", "f1"])}
    assert refusal(run(data=data), AxSearch(noise="binomial")) == (
        "AxSearch: binomial noise is that of an accuracy, but task 'y' is scored by accuracy, f1; "
        "use noise infer"
    )
    check(run(data=data), AxSearch())
    check(run(), AxSearch(noise="binomial"))


def test_heads_that_cannot_be_refitted_are_refused(monkeypatch):
    line = refusal(run(data={}, when="end"))
    assert line.startswith("--refit_heads: is end, but there are no data")
    asked = []
    monkeypatch.setattr(inputs, "check_refitting", lambda *args: asked.append(args))
    made = run()
    made.probed = True
    check(made)
    assert asked == [(made.refitting, made.module, made.data, made.ensemble.models, True)]


class Model(nn.Module):
    def __init__(self, body, head):
        super().__init__()
        self.body = nn.Parameter(torch.tensor([body]))
        self.head = nn.Parameter(torch.tensor([head]))


def given(head=5.0, donor=3.0, base=0.5, tasks=None, when="off"):
    model = Model(1.0, head)
    bodies = {"x": {"body": model.body.detach()}, "z": {"body": torch.tensor([donor])}}
    made = run(data=tasks or {"x": task()}, when=when)
    made.ensemble = SimpleNamespace(
        models={"x": model},
        bodies=bodies,
        base=None if base is None else {"body": torch.tensor([base])},
    )
    return fingerprints(made)


def changed(**change):
    """Which hashes a change changes."""
    before, after = given(), given(**change)
    assert before == given() and list(before) == list(after)[: len(before)]
    return [what for what in before if before[what] != after[what]]


def test_hashes_are_by_expert_and_task():
    found = given()
    assert list(found) == ["expert", "base", "data"]
    assert list(found["expert"]) == ["x", "z"] and list(found["data"]) == ["x"]
    assert len({*found["expert"].values(), found["base"], *found["data"].values()}) == 4
    assert given(base=None)["base"] is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"head": 5.5}, ["expert"]),
        ({"donor": 3.5}, ["expert"]),
        ({"base": 0.25}, ["base"]),
        ({"tasks": {"x": task(validation=[example(0), example(0)])}}, ["data"]),
        ({"tasks": {"x": task(validation=[example(1), example(0)])}}, ["data"]),  # their order
        ({"tasks": {"x": task(validation=[example(0, "blue"), example(1)])}}, ["data"]),
        ({"tasks": {"x": task(test=[example(0)])}}, []),  # it chooses nothing
        ({"tasks": {"x": task(train=[example(0)])}}, []),
    ],
)
def test_what_changes_a_hash(change, what):
    assert changed(**change) == what


def test_training_examples_count_where_every_trial_refits_heads():
    before = given(when="trials")
    assert list(before) == ["expert", "base", "data", "training data"]
    after = given(when="trials", tasks={"x": task(train=[example(0)])})
    assert [what for what in before if before[what] != after[what]] == ["training data"]
    assert "training data" not in given(when="end")


def test_a_curve_ends_at_its_nodes():
    search = Sobol()
    search.start(SearchSpace.of(["x", "y"], [], bounds={"y": [0, 1.5]}))
    line = refusal(run(DFMerge(), curve=3), search)
    assert line.startswith("--fisher.curve: its nodes lie in [0, 1], but the coefficient of 'y'")
    assert "of 'x' may" in refusal(run(DFMerge(), curve=3), Fixed({"x": -0.1, "y": 1.0}))
    check(run(DFMerge()), search)
