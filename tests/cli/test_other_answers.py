"""Answers that are numbers, spans, or classes in another order: scores and Fishers."""

import math

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fmerge.cli.app import main
from fmerge.store import read_fisher
from tests import hub_layout, oracle, tiny
from tests.compare import assert_same, relative_error

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--data.batch_size=4"]


def glue(task, source):
    return [
        *[f"--data.tasks.{task}=Glue", f"--data.tasks.{task}.init_args.task={task}"],
        *[f"--data.tasks.{task}.init_args.source={source}", *QUIET],
    ]


def fisher(tmp_path, name, *args):
    output = tmp_path / f"{name}.safetensors"
    main(["fisher", *map(str, args), "--output", str(output)])
    return read_fisher(output)[0]


@pytest.fixture
def scores(tmp_path):
    """A regression on six pairs, and what the oracle needs of them."""
    source = hub_layout.glue(tmp_path / "glue", "stsb", (6, 6, 4))
    expert = hub_layout.roberta(tmp_path / "expert", ["LABEL_0"], seed=3)
    tokenizer = AutoTokenizer.from_pretrained(expert)
    pairs = zip(tiny.sentences(6, 0), tiny.sentences(6, 1), strict=True)
    batches = [tokenizer(*pair, return_tensors="pt") for pair in pairs]
    model = AutoModelForSequenceClassification.from_pretrained(expert).double().eval()
    labels = [1.4 * i % 5 for i in range(6)]
    return [*glue("stsb", source), "--expert", expert], model, batches, labels


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
def test_the_fisher_of_a_regression(scores, tmp_path, estimator):
    arguments, model, batches, labels = scores
    found = fisher(
        tmp_path, "f", *arguments, "--estimator", estimator, "--trainer.precision=64-true"
    )

    def weigh(mean, n):
        return [1.0] if estimator == "exact" else [(labels[n] - float(mean)) ** 2]

    expected, _ = oracle.fisher(model, batches, lambda batch: model(**batch).logits, weigh)
    tolerance = {} if estimator == "exact" else {"rtol": 1e-4}  # the labels are float32
    assert_same(found, expected, **tolerance)


@pytest.mark.slow
def test_sampled_and_rademacher_fishers_of_a_regression_have_that_mean(scores, tmp_path):
    arguments, *_ = scores
    exact = fisher(tmp_path, "exact", *arguments)
    many = ["--samples=400", "--trainer.precision=64-true"]
    for estimator in ("sampled", "rademacher"):
        found = fisher(tmp_path, estimator, *arguments, *many, "--estimator", estimator)
        assert 0.001 < relative_error(found, exact) < 0.15, estimator


def test_a_regression_is_scored_by_its_outputs(scores, tmp_path, capsys):
    from scipy import stats

    arguments, model, *_ = scores
    expert = arguments[-1]
    options = [*arguments[:-2], "--data.tasks.stsb.init_args.test=validation"]
    main(["test", *options, "--model.path", expert])
    printed = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(expert)
    pairs = zip(tiny.sentences(6, 10), tiny.sentences(6, 11), strict=True)
    with torch.no_grad():
        means = [float(model(**tokenizer(*pair, return_tensors="pt")).logits) for pair in pairs]
    labels = [1.4 * i % 5 for i in range(6)]
    for metric, value in (
        ("pearson", stats.pearsonr(means, labels).statistic),
        ("spearman", stats.spearmanr(means, labels).statistic),
        ("loss", sum((m - y) ** 2 / 2 for m, y in zip(means, labels, strict=True)) / 6),
    ):
        line = next(line for line in printed.splitlines() if metric in line)
        shown = [float(word) for word in line.replace("│", " ").split() if word[-1].isdigit()]
        assert shown[-1] == pytest.approx(value, abs=2e-4), metric


@pytest.fixture
def spans(tmp_path):
    """Three questions on texts, the answer in the last two tokens but for the first one."""
    source = hub_layout.squad2(tmp_path / "data", 3)
    expert = hub_layout.answering_roberta(tmp_path / "expert", seed=3)
    tokenizer = AutoTokenizer.from_pretrained(expert)
    texts = [f"{one} green moon" for one in tiny.sentences(3, 0)]
    questions = tiny.sentences(3, 50)
    batches = [tokenizer(*pair, return_tensors="pt") for pair in zip(questions, texts, strict=True)]
    model = AutoModelForQuestionAnswering.from_pretrained(expert).double().eval()
    arguments = ["--model=SpanAnswers", "--data.tasks.squad2=Squad2", *QUIET, "--expert", expert]
    return [*arguments, f"--data.tasks.squad2.init_args.source={source}"], model, batches


def pairs(model, batch):
    """log p(start) + log p(end) of every pair of positions."""
    outputs = model(**batch)
    starts, ends = (x.log_softmax(1) for x in (outputs.start_logits, outputs.end_logits))
    return (starts[:, :, None] + ends[:, None, :]).flatten(1)


def test_the_empirical_fisher_of_spans(spans, tmp_path):
    arguments, model, batches = spans
    found = fisher(
        tmp_path, "f", *arguments, "--estimator=empirical", "--trainer.precision=64-true"
    )

    def weigh(log_likelihoods, n):
        t = math.isqrt(len(log_likelihoods))
        start, end = (0, 0) if n == 0 else (t - 2, t - 1)
        weights = torch.zeros(t, t)
        weights[start, end] = 1
        return weights.flatten()

    expected, _ = oracle.fisher(model, batches, lambda batch: pairs(model, batch), weigh)
    assert_same(found, expected)


@pytest.mark.slow
def test_fishers_over_all_spans(spans, tmp_path, record_property):
    """All t² spans one by one: the exact Fisher, and the mean of the sampled and signed ones."""
    arguments, model, batches = spans
    expected, _ = oracle.fisher(
        model, batches, lambda batch: pairs(model, batch), lambda values, n: values.exp()
    )
    double = [*arguments, "--trainer.precision=64-true"]
    assert_same(fisher(tmp_path, "exact", *double), expected)
    for estimator, samples in (("sampled", 1000), ("rademacher", 1000)):
        chosen = ["--estimator", estimator, "--samples", samples]
        error = relative_error(fisher(tmp_path, estimator, *double, *chosen), expected)
        record_property("figure", f"{estimator} Fisher of spans, {samples}: error {error:.3f}")
        assert 0.001 < error < 0.15, estimator


def test_an_expert_with_labels_in_another_order_is_the_same_expert(tmp_path, capsys):
    source = hub_layout.glue(tmp_path / "glue", "rte", (6, 8, 4))
    own = tiny.classifier(hub_layout.roberta_config(hub_layout.LABELS["rte"]), seed=4)
    tiny.save(own, tmp_path / "own")
    with torch.no_grad():
        for parameter in own.classifier.out_proj.parameters():
            parameter.copy_(parameter.flip(0))
    own.config.id2label = {0: "Not Entailment", 1: "ENTAILMENT"}
    tiny.save(own, tmp_path / "other")
    printed, fishers = [], []
    for name in ("own", "other"):
        capsys.readouterr()
        main(["validate", *glue("rte", source), "--model.path", str(tmp_path / name)])
        printed.append(capsys.readouterr().out)
        arguments = [*glue("rte", source), "--expert", tmp_path / name, "--estimator=empirical"]
        fishers.append(fisher(tmp_path, f"fisher_{name}", *arguments))
    assert "rte/accuracy" in printed[0] and printed[0] == printed[1]
    # each file is in its checkpoint's own order of outputs
    for name in ("classifier.out_proj.weight", "classifier.out_proj.bias"):
        fishers[1][name] = fishers[1][name].flip(0)
    assert_same(fishers[1], fishers[0], rtol=0, atol=0)
    head = fishers[0]["classifier.out_proj.weight"]
    assert not torch.equal(head, head.flip(0))
