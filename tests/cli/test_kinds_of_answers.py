"""Other kinds of models and answers, from a base to merges that open in their home library."""

import csv
import json

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from fmerge.modules import TextClassifier, TextEmbedder, TokenClassifier
from fmerge.store import load_classifier, load_tokenizer
from tests import tiny
from tests.cli.run import fails
from tests.cli.whole_way import run, whole_way
from tests.modules.test_embedding import folder as embedding_folder

SIZES = {"train": 16, "validation": 9, "test": 7}


def labelled(folder, name, answers, seed):
    """Tables of three splits; ``answers`` maps a text to the cells of a row."""
    files = {}
    for i, (split, n) in enumerate(SIZES.items()):
        files[split] = str(folder / f"{name}_{split}.csv")
        rows = [{"text": text, **answers(text)} for text in tiny.sentences(n, seed + i)]
        with open(files[split], "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return files


def named(text):
    return {"label": ";".join(one for one in ("red", "cat", "sea") if one in text.split())}


def flagged(text):
    return {one: int(one in text.split()) for one in ("dog", "sky")}


def counted(text):
    return {"score": len(text.split()) / 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = tiny.bert_config(num_hidden_layers=1)
    return tiny.save(tiny.classifier(config, seed=1), tmp_path_factory.mktemp("kinds") / "base")


@pytest.fixture
def tasks(tmp_path):
    labels = labelled(tmp_path, "labels", named, 0)
    flags = labelled(tmp_path, "flags", flagged, 50)
    return {
        "words": {"class_path": "TextFiles", "init_args": {**labels, "separator": ";"}},
        "things": {"class_path": "TextFiles", "init_args": {**flags, "label": ["dog", "sky"]}},
    }


@pytest.mark.slow
def test_several_labels_from_a_base_to_a_pipeline(tmp_path, base, tasks):
    metrics = {"micro_f1", "average_precision"}
    found = whole_way(tmp_path, base, tasks, {"class_path": "TextClassifier"}, metrics)
    texts = tiny.sentences(5, 99)
    for folder in found.values():
        module = TextClassifier()
        model = load_classifier(str(folder / "words"), "words")
        assert model.config.problem_type == "multi_label_classification"
        assert model.config.id2label == {0: "cat", 1: "red", 2: "sea"}
        module.adopt({"words": model}, load_tokenizer(str(folder / "words")))
        module.eval()
        with torch.no_grad():
            batch = module.collate([{"text": t, "label": [0, 0, 0]} for t in texts], "words")
            ours = module.outcome(batch)[1]
        home = pipeline("text-classification", str(folder / "words"), device="cpu", top_k=None)
        for text, own in zip(texts, ours, strict=True):
            # the pipeline reads problem_type and applies a sigmoid
            scores = {one["label"]: one["score"] for one in home([text])[0]}
            expected = [scores[label] for label in ("cat", "red", "sea")]
            torch.testing.assert_close(own, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_numbers_from_a_base_to_transformers(tmp_path, base):
    options = {"label": "score", "labels": "number", "metrics": ["pearson", "neg_rmse"]}
    tasks = {
        name: {
            "class_path": "TextFiles",
            "init_args": {**labelled(tmp_path, name, counted, seed), **options},
        }
        for name, seed in (("one", 0), ("two", 50))
    }
    found = whole_way(
        tmp_path, base, tasks, {"class_path": "TextClassifier"}, {"pearson", "neg_rmse"}
    )
    for folder in found.values():
        model = AutoModelForSequenceClassification.from_pretrained(folder / "one")
        assert model.config.problem_type == "regression"
        assert model.config.id2label == {0: "score"}
        tokenizer = AutoTokenizer.from_pretrained(folder / "one")
        outputs = model(**tokenizer("red cat", return_tensors="pt")).logits
        assert outputs.shape == (1, 1) and bool(outputs.isfinite().all())


def tagged(folder, name, entities, seed):
    """Files of lists, in which some words are entities."""
    files = {}
    for i, (split, n) in enumerate(SIZES.items()):
        files[split] = str(folder / f"{name}_{split}.jsonl")
        with open(files[split], "w") as file:
            for text in tiny.sentences(n, seed + i):
                words = text.split()
                tags = [f"B-{entities[word]}" if word in entities else "O" for word in words]
                file.write(json.dumps({"tokens": words, "tags": tags}) + "\n")
    return files


@pytest.mark.slow
def test_tags_from_a_base_to_a_pipeline(tmp_path, base):
    pytest.importorskip("seqeval")
    kinds = {
        "life": dict.fromkeys(("cat", "dog", "tree"), "LIFE"),
        "place": {"sky": "HIGH", "sea": "LOW", "moon": "HIGH"},
    }
    tasks = {
        name: {
            "class_path": "TagFiles",
            "init_args": {
                **tagged(tmp_path, name, entities, seed),
                "labels": ["O", *sorted({f"B-{one}" for one in entities.values()})],
            },
        }
        for seed, (name, entities) in zip((0, 50), kinds.items(), strict=True)
    }
    found = whole_way(tmp_path, base, tasks, {"class_path": "TokenClassifier"}, {"entity_f1"})
    texts = tiny.sentences(5, 99)
    for folder in found.values():
        module = TokenClassifier()
        model = module.read(str(folder / "place"), "place")
        module.adopt({"place": model}, load_tokenizer(str(folder / "place")))
        module.eval()
        home = pipeline(
            "token-classification", str(folder / "place"), device="cpu", ignore_labels=[]
        )
        for text in texts:
            words = text.split()
            batch = module.collate([{"words": words, "label": [0] * len(words)}], "place")
            with torch.no_grad():
                p, chosen = module.part_log_probs(batch)[0].exp().max(dim=1)
            entities = home(text)
            assert [one["word"] for one in entities] == words
            assert [one["entity"] for one in entities] == [
                model.config.id2label[tag] for tag in chosen.tolist()
            ]
            scores = torch.tensor([float(one["score"]) for one in entities])
            torch.testing.assert_close(p, scores, rtol=1e-5, atol=1e-6)


def similar(text):
    other = " ".join(text.split()[::-1][:3])
    return {"other": other, "score": len(other.split()) % 3}


@pytest.mark.slow
def test_embeddings_from_a_base_to_sentence_transformers(tmp_path):
    home = pytest.importorskip("sentence_transformers")
    source = embedding_folder(tmp_path / "base")
    options = {"text_pair": "other", "label": "score", "labels": "number", "metrics": ["spearman"]}
    tasks = {
        name: {
            "class_path": "TextFiles",
            "init_args": {**labelled(tmp_path, name, similar, seed), **options},
        }
        for name, seed in (("one", 0), ("two", 50))
    }
    model = {"class_path": "TextEmbedder", "init_args": {"score_scale": 2.0}}
    found = whole_way(tmp_path, source, tasks, model, {"spearman"})
    texts = tiny.sentences(5, 99)
    for folder in found.values():
        for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
            assert (folder / name).read_text() == (tmp_path / "base" / name).read_text()
        module = TextEmbedder()
        module.adopt({"one": module.read(str(folder), "one")}, load_tokenizer(str(folder)))
        module.eval()
        with torch.no_grad():
            batch = module.collate([{"text": t, "text_pair": t} for t in texts], "one")
            ours = module.embeddings(batch)[:, 0]
        expected = home.SentenceTransformer(str(folder), device="cpu").encode(
            texts, convert_to_tensor=True
        )
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        assert (ours - ours[:1]).abs().max() > 1e-3


@pytest.mark.slow
def test_pairs_without_scores_are_fitted_and_merged(tmp_path, capsys):
    base = embedding_folder(tmp_path / "base")
    tasks = {
        name: {
            "class_path": "PairFiles",
            "init_args": {
                **labelled(tmp_path, name, similar, seed), "text": "text", "text_pair": "other",
                "metrics": ["recall_at_1", "mrr"],
            },
        }
        for name, seed in (("one", 0), ("two", 50))
    }  # fmt: skip
    config = tmp_path / "config.yaml"
    trainer = {"accelerator": "cpu", "enable_progress_bar": False}
    data = {"batch_size": 4, "tasks": tasks}
    config.write_text(yaml.safe_dump({
        "model": {"class_path": "TextEmbedder"}, "data": data, "trainer": trainer,
    }))  # fmt: skip
    for name in tasks:
        own = tmp_path / f"{name}.yaml"
        own.write_text(yaml.safe_dump({
            "model": {"class_path": "TextEmbedder"}, "trainer": trainer,
            "data": {"batch_size": 4, "tasks": {name: tasks[name]}},
        }))  # fmt: skip
        run(
            *["fit", "--config", own, "--model.path", base, "--output", tmp_path / name],
            *["--trainer.max_epochs", "1", "--model.learning_rate", "0.01"],
        )
    experts = [f"--experts.{name}={tmp_path / name / 'expert'}" for name in tasks]
    arguments = ["merge", "--config", config, *experts, "--base", base, "--baselines", "experts"]
    run(*arguments, "--method", "TIES", "--output", tmp_path / "ties")
    report = (tmp_path / "ties" / "report.md").read_text()
    assert "recall_at_1" in report and "mrr" in report
    line = fails(capsys, *arguments, "--method", "DFMerge", "--output", tmp_path / "df")
    assert "its loss compares the pairs of a batch with each other" in line


def test_an_expert_of_other_answers_is_refused_before_any_pass(tmp_path, base, tasks, capsys):
    """A classifier for a task of labels, and a metric that does not fit."""
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"data": {"tasks": {"words": tasks["words"]}}}))
    model = tiny.classifier(
        tiny.bert_config(("cat", "red", "sea"), problem_type="single_label_classification")
    )
    expert = tiny.save(model, tmp_path / "expert")
    arguments = ["fisher", "--config", config, "--output", tmp_path / "f.safetensors"]
    line = fails(capsys, *arguments, "--expert", expert)
    assert "problem_type is single_label_classification: its classes exclude each other" in line
    model.config.problem_type = "multi_label_classification"
    expert = tiny.save(model, tmp_path / "other")
    metric = ["--data.tasks.words.init_args.metrics", "[accuracy]"]
    line = fails(capsys, "validate", "--config", config, "--model.path", expert, *metric)
    assert "metric 'accuracy': is of classes, but the task's answers are labels; use " in line
