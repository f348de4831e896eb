"""What a classifier's outputs mean is kept, or refused before any work."""

import json
from types import SimpleNamespace

import pytest

import fmerge
from fmerge.errors import UserError
from fmerge.methods import Average
from fmerge.store import load_classifier
from fmerge.store.labels import problem_type
from tests import tiny

LABELS = ["a", "b", "c"]


def saved(folder, labels=LABELS, **entries):
    model = tiny.classifier(tiny.bert_config(labels, **entries), seed=len(labels))
    return tiny.save(model, folder)


@pytest.mark.parametrize("own", [None, "single_label_classification"])
def test_a_trained_head_keeps_its_problem_type(tmp_path, own):
    folder = saved(tmp_path / "x", problem_type=own)
    assert load_classifier(folder, "x", LABELS).config.problem_type == own
    assert load_classifier(folder, "x").config.problem_type == own


@pytest.mark.parametrize("own", [None, "regression"])
def test_one_output_is_a_regression(tmp_path, own):
    folder = saved(tmp_path / "x", ["score"], problem_type=own)
    assert load_classifier(folder, "x", ["score"]).config.problem_type == own


@pytest.mark.parametrize(
    ("labels", "own", "says"),
    [
        (LABELS, "multi_label_classification", "its labels do not exclude each other"),
        (["score"], "multi_label_classification", "its labels do not exclude each other"),
        (LABELS, "regression", "it gives 3 numbers at once"),
    ],
)
def test_what_is_not_supported_is_refused_where_it_would_be_run(tmp_path, labels, own, says):
    folder = saved(tmp_path / "x", labels, problem_type=own)
    with pytest.raises(UserError) as refused:
        load_classifier(folder, "x", labels)
    assert str(refused.value) == (
        f"{folder}: its config's problem_type is {own}: {says}, which is not supported yet; "
        "without --data it can be merged, but neither scored nor given a Fisher"
    )
    # a fit trains a new head, and says so
    made = load_classifier(folder, "x", labels, fresh_head=True)
    usual = "regression" if len(labels) == 1 else "single_label_classification"
    assert made.config.problem_type == usual


def test_one_class_is_none():
    # newer versions of transformers refuse such a config themselves
    config = SimpleNamespace(problem_type="single_label_classification")
    with pytest.raises(UserError, match="it has 1 output, which is not supported yet"):
        problem_type(config, ["score"], "x", new=False)
    assert problem_type(config, ["score"], "x", new=True) == "regression"


def test_without_data_it_is_merged_and_kept(tmp_path):
    kinds = {"x": "multi_label_classification", "y": None, "z": "regression"}
    experts = {name: saved(tmp_path / name, problem_type=own) for name, own in kinds.items()}
    trainer = fmerge.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    module = fmerge.modules.TextClassifier()
    trainer.merge(module, experts=experts, method=Average(), output=tmp_path / "run")
    for name, own in kinds.items():
        found = json.loads((tmp_path / "run" / "merged" / name / "config.json").read_text())
        assert found.get("problem_type") == own
        assert found["id2label"] == {"0": "a", "1": "b", "2": "c"}
