"""Metrics of texts: values by hand, against torchmetrics on whole corpora, and over batches."""

import pytest
import torch
from torchmetrics.text import BLEUScore, ROUGEScore, SQuAD

from fmerge.errors import UserError
from fmerge.modules.text_metrics import COMPARISONS, Written, answer_metric

ANSWERS = ["the cat sat on a mat", "A dog!", "", "one two three four five"]
TRUTH = ["a cat sat on the red mat", "dog", "nothing", "one two three four six"]
NOTHING = torch.zeros(4), torch.ones(4)
FOUND = Written(*NOTHING, ANSWERS, TRUTH)


def corpus():
    """torchmetrics' own scores of all answers together."""
    squad = SQuAD()
    for i, (answer, truth) in enumerate(zip(ANSWERS, TRUTH, strict=True)):
        target = {"answers": {"answer_start": [0], "text": [truth]}, "id": str(i)}
        squad.update([{"prediction_text": answer, "id": str(i)}], [target])
    found = squad.compute()
    rouge = ROUGEScore(rouge_keys=("rouge1", "rouge2", "rougeL"))
    rouge.update(ANSWERS, TRUTH)
    bleu = BLEUScore()
    bleu.update(ANSWERS, [[one] for one in TRUTH])
    names = ("rouge1", "rouge2", "rougeL")
    return {
        "exact_match": found["exact_match"] / 100,
        "token_f1": found["f1"] / 100,
        **{name: rouge.compute()[f"{name}_fmeasure"] for name in names},
        "bleu": bleu.compute(),
    }


def test_metrics_are_torchmetrics_own_over_any_batches():
    expected = corpus()
    assert set(expected) == {"bleu", *COMPARISONS}
    for name, value in expected.items():
        assert 0 < float(value) < 1
        metric = answer_metric(name)
        statistics = metric.statistics(FOUND)
        for rows in (statistics[:1], statistics[1:]):
            metric.update(rows)
        torch.testing.assert_close(metric.compute(), value, rtol=1e-5, atol=1e-6)
        assert metric.statistics(FOUND).shape == (4, metric.size)


def test_exact_match_and_f1_by_hand():
    exact, f1 = (
        answer_metric(name).statistics(FOUND)[:, 0] for name in ("exact_match", "token_f1")
    )
    assert exact.tolist() == [0, 1, 0, 0]  # articles, case and punctuation do not count
    # 4 common words of 4 and of 5: 2 · 1 · 0.8 / 1.8
    torch.testing.assert_close(f1, torch.tensor([8 / 9, 1, 0, 0.8], dtype=torch.float64))


def test_inverse_perplexity_weighs_tokens():
    metric = answer_metric("inverse_perplexity")
    found = Written(torch.tensor([-2.0, -1.0]), torch.tensor([2, 4]), (), ("", ""))
    metric.update(metric.statistics(found))
    assert float(metric.compute()) == pytest.approx(2.718281828 ** (-3 / 6))


def too_much(answer, reference):
    return 100.0


def nothing(answer, reference):
    return None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("accuracy", "metric 'accuracy': does not fit TextGenerator; known: bleu, exact_match"),
        ("no_such_module.f", r"metric 'no_such_module.f': cannot be imported \(No module named"),
        (f"{__name__}.missing", "cannot be imported"),
        (f"{__name__}.ANSWERS", "is no function, but list"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        answer_metric(name)


@pytest.mark.parametrize("function", [too_much, nothing])
def test_functions_give_numbers_from_0_to_1(function):
    metric = answer_metric(f"{__name__}.{function.__name__}")
    with pytest.raises(UserError, match=r"for the answer 'the cat sat .* a number from 0 to 1$"):
        metric.statistics(FOUND)
