"""Metrics by name equal scikit-learn's and scipy's, on collapsed predictions too."""

import pytest
import torch
from scipy import stats
from sklearn import metrics

from fmerge.errors import UserError
from fmerge.modules.metrics import make_metric
from fmerge.store import LabelNames


def truth(name, predictions, labels):
    return {
        "accuracy": metrics.accuracy_score,
        "f1": metrics.f1_score,
        "macro_f1": lambda y, p: metrics.f1_score(y, p, average="macro"),
        "matthews": metrics.matthews_corrcoef,
        "pearson": lambda y, p: stats.pearsonr(p, y).statistic,
        "spearman": lambda y, p: stats.spearmanr(p, y).statistic,
    }[name](labels.numpy(), predictions.numpy())


def found(name, classes, predictions, labels):
    metric = make_metric(name, ["x"] * classes)
    for p, y in zip(predictions.split(7), labels.split(7), strict=True):
        metric.update(p, y)
    return float(metric.compute())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("accuracy", 3),
        ("accuracy", 0),
        ("f1", 2),
        ("macro_f1", 3),
        ("matthews", 2),
        ("matthews", 3),
    ],
)
def test_metrics_of_classes(name, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes or 5, (40,), generator=generator)
    noise = torch.randint(classes or 5, (40,), generator=generator)
    predictions = torch.where(torch.rand(40, generator=generator) < 0.5, labels, noise)
    expected = truth(name, predictions, labels)
    assert found(name, classes, predictions, labels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["numbers", "bins"])
@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_metrics_of_numbers(name, kind):
    generator = torch.Generator().manual_seed(0)
    labels = 5 * torch.rand(40, generator=generator)
    predictions = labels + 2 * torch.randn(40, generator=generator)
    if kind == "bins":  # ties, and whole numbers
        labels, predictions = labels.long(), predictions.long()
    expected = truth(name, predictions, labels)
    assert found(name, 1, predictions, labels) == pytest.approx(expected, abs=1e-5)


def test_metrics_of_labels():
    """Scores of probabilities; a label that no example has counts as zero, and warns of nothing."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(2, (40, 4), generator=generator)
    truth[:, 3] = 0
    p = (truth * 0.3 + 0.7 * torch.rand(40, 4, generator=generator)).float()
    names = LabelNames("abcd", "labels")

    def score(name):
        metric = make_metric(name, names)
        for part, y in zip(p.split(7), truth.split(7), strict=True):
            metric.update(part, y)
        return float(metric.compute())

    for average in ("micro", "macro"):
        expected = metrics.f1_score(truth, p > 0.5, average=average, zero_division=0)
        assert score(f"{average}_f1") == pytest.approx(expected, abs=1e-6)
    # scikit-learn warns of the last label
    expected = metrics.average_precision_score(truth[:, :3], p[:, :3], average="macro") * 3 / 4
    assert score("average_precision") == pytest.approx(expected, abs=1e-6)
    nothing = make_metric("average_precision", names)
    nothing.update(p, torch.zeros_like(truth))
    assert float(nothing.compute()) == 0


def test_errors_of_numbers():
    generator = torch.Generator().manual_seed(0)
    labels = 5 * torch.rand(40, generator=generator) + 1000
    p = labels + torch.randn(40, generator=generator)
    pair = labels.double(), p.double()
    expected = {
        "r2": metrics.r2_score(*pair),
        "neg_rmse": -metrics.root_mean_squared_error(*pair),
        "neg_mae": -metrics.mean_absolute_error(*pair),
    }
    for name, value in expected.items():
        metric = make_metric(name, ["score"])
        assert not metric.update_called
        for _ in range(2):  # again after a reset
            for part, y in zip(p.split(7), labels.split(7), strict=True):
                metric.update(part, y)
            assert float(metric.compute()) == pytest.approx(value, abs=1e-4)
            metric.reset()
            assert not metric.update_called
    for flat in (torch.full((3,), 2.0), torch.ones(1)):
        metric = make_metric("r2", ["score"])
        metric.update(torch.arange(float(len(flat))), flat)
        assert float(metric.compute()) == 0


@pytest.mark.parametrize("constant", [0, 1])
@pytest.mark.parametrize("side", ["predictions", "labels"])
def test_no_correlation_with_a_constant(constant, side, recwarn):
    """Merged models collapse to one answer; 721 of 1,043 is the share of CoLA."""
    labels = (torch.arange(1043) < 721).long()
    flat = torch.full_like(labels, constant)
    pair = (flat, labels) if side == "predictions" else (labels, flat)
    assert found("matthews", 2, *pair) == 0 == metrics.matthews_corrcoef(*map(list, pair))
    for name in ("pearson", "spearman"):
        for value in (constant, 0.1, 3.7):
            pair = (torch.full((1043,), float(value)), torch.rand(1043) * 5)
            pair = pair if side == "predictions" else pair[::-1]
            assert found(name, 1, *pair) == pytest.approx(0, abs=1e-6)
    assert not [one for one in recwarn if "variance" in str(one.message)]


def test_unfit_metrics_are_refused():
    with pytest.raises(UserError, match="unknown metric 'bleu'; known: accuracy"):
        make_metric("bleu", ["a", "b"])
    with pytest.raises(UserError, match="needs two classes, but the task has 3"):
        make_metric("f1", ["a", "b", "c"])
    with pytest.raises(UserError, match="'accuracy': is of classes, but the task's answers are la"):
        make_metric("accuracy", LabelNames("ab", "labels"))
    with pytest.raises(UserError, match="'micro_f1': is of labels, .* are number; use .*neg_rmse"):
        make_metric("micro_f1", ["score"])
    with pytest.raises(UserError, match="'macro_f1': needs classes that the examples share"):
        make_metric("macro_f1", [])


@pytest.mark.parametrize("size", [1, 7, 500])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
def test_pearson_is_right_far_from_zero(offset, size):
    """In float32 the sums of 500 numbers near 10⁴ give a correlation that is off by 1e-4."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(500, generator=generator) + offset
    predictions = labels + 0.5 * torch.randn(500, generator=generator)
    metric = make_metric("pearson", ["x"])
    for p, y in zip(predictions.split(size), labels.split(size), strict=True):
        metric.update(p, y)
    expected = stats.pearsonr(predictions.double(), labels.double()).statistic
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-9)


def test_pearson_knows_one_outlier_among_many():
    """Its variance is 1/n of the largest square, which float32's bound calls constant."""
    labels = torch.zeros(20_000)
    labels[5] = 1.0
    predictions = labels.clone()
    predictions[6] = 1.0
    assert float(make_metric("pearson", ["x"])(predictions, labels)) == pytest.approx(
        0.5**0.5, abs=1e-4
    )


def test_pearson_of_a_module_in_half_precision():
    module = torch.nn.ModuleDict({"pearson": make_metric("pearson", ["x"])}).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randn(90, generator=generator) + 100
    predictions = labels + torch.randn(90, generator=generator)
    expected = stats.pearsonr(predictions.double(), labels.double()).statistic
    metric = module["pearson"]
    for _ in range(2):  # again after a reset
        for p, y in zip(predictions.split(7), labels.split(7), strict=True):
            metric.update(p, y)
        assert float(metric.compute()) == pytest.approx(expected, abs=1e-9)
        metric.reset()


def test_entities_are_seqevals():
    sequence_labeling = pytest.importorskip("seqeval.metrics")
    names = LabelNames(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], "tags")
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(5, (30, 8), generator=generator)
    noise = torch.rand(30, 8, generator=generator) < 0.3
    p = torch.where(noise, torch.randint(5, (30, 8), generator=generator), truth)
    absent = torch.arange(8) >= torch.randint(1, 9, (30, 1), generator=generator)
    truth, p = truth.masked_fill(absent, -100), p.masked_fill(absent, -100)
    metric, accuracy = make_metric("entity_f1", names), make_metric("token_accuracy", names)
    for _ in range(2):  # again after a reset
        for part, y in zip(p.split(7), truth.split(7), strict=True):
            metric.update(part, y)
            accuracy.update(part, y)
        pairs = [
            [[names[tag] for tag in row.tolist() if tag != -100] for row in side]
            for side in (truth, p)
        ]
        assert float(metric.compute()) == pytest.approx(sequence_labeling.f1_score(*pairs))
        assert float(accuracy.compute()) == pytest.approx(sequence_labeling.accuracy_score(*pairs))
        metric.reset()
        accuracy.reset()
    metric.update(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    assert float(metric.compute()) == 0  # no entity anywhere


def test_entities_without_seqeval_name_the_extra(monkeypatch):
    monkeypatch.setattr("fmerge.modules.tag_metrics.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package seqeval; .*fmerge.text-metrics.*oken_a"
    ):
        make_metric("entity_f1", LabelNames(["O", "B-X"], "tags"))
    with pytest.raises(
        UserError, match="'accuracy': is of classes, but .* are tags; use entity_f1"
    ):
        make_metric("accuracy", LabelNames(["O", "B-X"], "tags"))
