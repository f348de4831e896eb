"""What a classifier's outputs mean is kept, or refused before any work."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, RobertaConfig

import fmerge
from fmerge.errors import UserError
from fmerge.methods import Average
from fmerge.params import params_of
from fmerge.store import (
    LabelNames,
    checkpoint_order,
    in_checkpoint_order,
    labels_of_config,
    load_classifier,
)
from fmerge.store.labels import problem_type
from tests import tiny
from tests.compare import assert_same

LABELS = ["a", "b", "c"]
OWN = tiny.LABELS["colour"]


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


MULTI, SINGLE = "multi_label_classification", "single_label_classification"
SEVERAL = LabelNames(LABELS, "labels")


@pytest.mark.parametrize(
    ("labels", "own", "means", "wants", "give"),
    [
        (LABELS, MULTI, "its labels do not exclude", "is of one class", "with lists of labels"),
        (["score"], MULTI, "its labels do not exclude", "are single numbers", "with lists of"),
        (LABELS, "regression", "its answers are numbers", "is of one class", "labels: number"),
        (SEVERAL, SINGLE, "its classes exclude", "have any number of labels", "one label an ex"),
        (SEVERAL, "regression", "its answers are numbers", "have any number", "labels: number"),
    ],
)
def test_outputs_of_another_meaning_are_refused(tmp_path, labels, own, means, wants, give):
    folder = saved(tmp_path / "x", labels, problem_type=own)
    with pytest.raises(UserError) as refused:
        load_classifier(folder, "x", labels)
    line = str(refused.value)
    assert line.startswith(f"{folder}: its config's problem_type is {own}: {means}")
    assert wants in line and give in line.partition("; give data")[2]
    # a fit trains a new head, and says so
    made = load_classifier(folder, "x", labels, fresh_head=True)
    usual = MULTI if labels is SEVERAL else "regression" if len(labels) == 1 else SINGLE
    assert made.config.problem_type == usual


@pytest.mark.parametrize("own", [None, MULTI])
@pytest.mark.parametrize("labels", [LABELS, ["toxic"]])
def test_labels_that_do_not_exclude_each_other_are_named_so(tmp_path, labels, own):
    folder = saved(tmp_path / "x", labels, problem_type=own)
    read = load_classifier(folder, "x", LabelNames(labels, "labels"))
    assert read.config.problem_type == MULTI
    assert labels_of_config(read.config) == labels
    assert labels_of_config(read.config).kind == "labels"


def test_one_class_is_none():
    # newer versions of transformers refuse such a config themselves
    config = SimpleNamespace(problem_type=SINGLE)
    with pytest.raises(UserError, match="its classes exclude each other, but the task's answers"):
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


def raw(path):
    return params_of(AutoModelForSequenceClassification.from_pretrained(path))


@pytest.mark.parametrize(
    "labels", [OWN, [OWN[1], OWN[0], OWN[2]], [OWN[2], OWN[0], OWN[1]], [OWN[1], OWN[2], OWN[0]]]
)
def test_what_was_read_in_another_order_goes_back(zoo, labels):
    model = load_classifier(zoo.experts["colour"], "colour", labels)
    own = raw(zoo.experts["colour"])
    order = checkpoint_order(model, 3)
    assert [labels[i] for i in order] == OWN
    now = params_of(model)
    assert_same(in_checkpoint_order(model, now), own, rtol=0, atol=0)
    rows = [OWN.index(label) for label in labels]
    assert now["classifier.weight"].equal(own["classifier.weight"][rows])
    # a Fisher of some parameters alone, and one of a body
    head = {"classifier.bias": now["classifier.bias"]}
    assert in_checkpoint_order(model, head)["classifier.bias"].equal(own["classifier.bias"])
    assert (
        in_checkpoint_order(model, {"bert.x": head["classifier.bias"]})["bert.x"]
        is head["classifier.bias"]
    )


def test_only_the_last_of_several_layers_has_the_labels_order(tmp_path):
    config = RobertaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=20, id2label={0: "x", 1: "y"},
        label2id={"x": 0, "y": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    tiny.save(AutoModelForSequenceClassification.from_config(config), tmp_path / "model")
    model = load_classifier(str(tmp_path / "model"), "t", ["y", "x"])
    own = raw(tmp_path / "model")
    assert not params_of(model)["classifier.out_proj.weight"].equal(
        own["classifier.out_proj.weight"]
    )
    assert_same(in_checkpoint_order(model, params_of(model)), own, rtol=0, atol=0)


def test_unnamed_outputs_have_the_tasks_order(zoo, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(zoo.experts["animal"])
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    tiny.save(model, tmp_path / "model")
    found = load_classifier(str(tmp_path / "model"), "animal", ["wild", "pet"])
    assert checkpoint_order(found, 2) == [0, 1]
    assert_same(in_checkpoint_order(found, params_of(found)), params_of(model), rtol=0, atol=0)
