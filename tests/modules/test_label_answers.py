"""Several labels and numbers: losses and predictions by hand, Fishers by their definition."""

import itertools

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from fmerge.fisher import FisherAccumulator, FisherSettings
from fmerge.modules import FisherPass, TextClassifier
from tests import oracle, tiny
from tests.compare import assert_same

LABELS = ["sad", "glad", "mad"]
TRUE = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]


@pytest.fixture(scope="module")
def case():
    """A classifier of three labels in float64, a batch of four texts, and each text alone."""
    config = tiny.bert_config(LABELS, problem_type="multi_label_classification")
    config.num_hidden_layers = 1
    model = tiny.classifier(config, seed=3).double()
    module = TextClassifier()
    module.adopt({"t": model}, tiny.tokenizer())
    module.eval()
    texts = tiny.sentences(4, 5)
    examples = [{"text": x, "label": y} for x, y in zip(texts, TRUE, strict=True)]
    batch = module.collate(examples, "t")
    return module, model, batch, [tiny.tokenizer()(text, return_tensors="pt") for text in texts]


def all_answers(model, batch):
    """ℓ (1, 8) of every set of three labels, by the definition of independence."""
    logits = model(**batch).logits[0]
    p = logits.sigmoid()
    values = [
        sum(torch.log(p[k] if y[k] else 1 - p[k]) for k in range(3))
        for y in itertools.product((0, 1), repeat=3)
    ]
    return torch.stack(values)[None]


def fisher(module, batch, estimator, samples=1):
    """A Fisher pass over one batch, without a Trainer."""
    pass_ = FisherPass(module, "t", FisherSettings(estimator=estimator, samples=samples))
    accumulator: FisherAccumulator = pass_._make()
    accumulator.add(pass_._with_answers(batch, range(4)), range(4))
    return accumulator.estimate().values


def test_losses_and_probabilities_are_those_of_sigmoids(case):
    module, model, batch, alone = case
    losses, predictions = module.outcome(batch)
    logits = torch.cat([model(**one).logits for one in alone])
    expected = binary_cross_entropy_with_logits(
        logits, torch.tensor(TRUE).double(), reduction="none"
    )
    torch.testing.assert_close(losses, expected.sum(1))
    torch.testing.assert_close(predictions, logits.sigmoid())
    assert module.targets(batch).tolist() == TRUE
    assert list(module.metrics["t"]) == ["micro_f1", "average_precision"]


def test_the_exact_fisher_is_the_sum_over_all_sets_of_labels(case):
    """2L backward passes give the mean over the 2^L answers."""
    module, model, batch, alone = case
    expected, count = oracle.fisher(
        model, alone, lambda one: all_answers(model, one), lambda values, n: values.exp()
    )
    assert count == 4
    assert_same(fisher(module, batch, "exact"), expected, rtol=1e-5)
    # and the sum over labels and their two values, as mathematics has it
    per_label, _ = oracle.fisher(
        model,
        alone,
        lambda one: torch.cat(
            [torch.nn.functional.logsigmoid(sign * model(**one).logits) for sign in (1, -1)], dim=1
        ),
        lambda values, n: values.exp(),
    )
    assert_same(per_label, expected, rtol=1e-8)


def test_the_empirical_fisher_is_that_of_the_true_set(case):
    module, model, batch, alone = case

    def weigh(values, n):
        true = 4 * TRUE[n][0] + 2 * TRUE[n][1] + TRUE[n][2]
        return torch.nn.functional.one_hot(torch.tensor(true), 8)

    expected, _ = oracle.fisher(model, alone, lambda one: all_answers(model, one), weigh)
    assert_same(fisher(module, batch, "empirical"), expected, rtol=1e-5)


def test_a_sampled_fisher_draws_whole_sets(case):
    """The draws are those of p(y|x): their shares, and the Fisher of the drawn sets."""
    module, model, batch, alone = case
    settings = FisherSettings(estimator="sampled", samples=3000)
    pass_ = FisherPass(module, "t", settings)
    drawn = pass_._with_answers(batch, range(4))["answers"]
    assert drawn.shape == (4, 3000, 3)
    numbers = drawn @ torch.tensor([4, 2, 1])
    shares = torch.stack([(numbers == k).double().mean(1) for k in range(8)], dim=1)
    p = torch.cat([all_answers(model, one) for one in alone]).detach().exp()
    assert float((shares - p).abs().max()) < 0.035  # four standard errors of a share
    few = {**batch, "answers": drawn[:, :2]}
    found = FisherAccumulator(module.task_model("t"), module.label_log_probs, "given")
    found.add(few)
    expected, _ = oracle.fisher(
        model, alone, lambda one: all_answers(model, one),
        lambda values, n: torch.nn.functional.one_hot(numbers[n, :2], 8).sum(0) / 2,
    )  # fmt: skip
    assert_same(found.estimate().values, expected, rtol=1e-5)


def test_draws_do_not_depend_on_the_batch(case):
    module, _, batch, _ = case
    pass_ = FisherPass(module, "t", FisherSettings(estimator="sampled", samples=2))
    whole = pass_._with_answers(batch, range(4))["answers"]
    last = module.collate([{"text": tiny.sentences(4, 5)[3], "label": TRUE[3]}], "t")
    assert pass_._with_answers(last, [3])["answers"].equal(whole[3:])


def test_kinds_of_tasks_live_side_by_side():
    """A merge of a classifier, a multi-label classifier and a regression has all three heads."""
    kinds = {"a": (["x", "y"], None), "b": (["x", "y"], "multi_label_classification")}
    kinds["c"] = (["score"], None)
    models = {
        task: tiny.classifier(tiny.bert_config(labels, problem_type=problem))
        for task, (labels, problem) in kinds.items()
    }
    module = TextClassifier()
    module.adopt(models, tiny.tokenizer())
    assert {task: module.kind(task) for task in kinds} == {
        "a": "classes", "b": "labels", "c": "number",
    }  # fmt: skip
    assert module.hparams["kinds"] == {"a": "classes", "b": "labels", "c": "number"}
    assert type(module.hparams["tasks"]["b"]) is list
    again = TextClassifier(tasks=module.hparams["tasks"], kinds=module.hparams["kinds"])
    assert [again.kind(task) for task in kinds] == ["classes", "labels", "number"]
    lists = {
        task: [module.lists_answers(task, one) for one in ("exact", "rademacher", "sampled")]
        for task in kinds
    }
    assert lists == {"a": [True] * 3, "b": [True, True, False], "c": [False] * 3}
