"""A refitted layer is scikit-learn's logistic regression on standardised features, folded."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fmerge.errors import UserError
from fmerge.modules import fit_linear
from tests.compare import assert_same


def draw(classes, n=80, width=5, seed=0):
    """Features on scales from 1 to 10,000, far from zero, one of them constant."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    labels = (x[:, 0] + 0.5 * x[:, 1] + 0.7 * x[:, 2]).argsort().argsort() * len(classes) // n
    x = x * 10.0 ** torch.arange(width) + 3 * 10.0 ** torch.arange(width)
    x[:, -1] = 7.0
    return x, torch.tensor(classes)[labels]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("seen", "classes"),
    [([0, 1], 2), ([0, 1, 2], 3), ([3, 0, 1, 2], 4), ([2, 4], 5), ([1, 0, 3], 4)],
)
def test_the_layer_gives_the_probabilities_of_the_pipeline(seen, classes, bias):
    x, y = draw(seen)
    weight, shift = fit_linear(x, y, classes, bias, strength=0.3)
    assert weight.shape == (classes, 5) and shift.shape == (classes,)
    assert bias or not shift.any()
    pipeline = make_pipeline(
        StandardScaler(with_mean=bias),
        LogisticRegression(C=0.3, fit_intercept=bias, tol=1e-8, max_iter=5000),
    ).fit(x.numpy(), y.numpy())
    logits = x @ weight.T + shift
    order = sorted(seen)
    assert pipeline.classes_.tolist() == order
    expected = torch.from_numpy(pipeline.predict_proba(x.numpy()))
    assert_same({"p": logits[:, order].softmax(1)}, {"p": expected}, rtol=1e-9, atol=1e-12)
    assert expected.argmax(1).unique().numel() == len(seen)  # the features tell the classes
    assert (torch.tensor(order)[expected.argmax(1)] == logits.argmax(1)).all()
    absent = logits[:, [c for c in range(classes) if c not in seen]]
    if bias:  # below 1e-8, far from the examples too
        far = (1000 * x) @ weight.T + shift
        for one in (logits, far):
            chances = one.softmax(1)[:, [c for c in range(classes) if c not in seen]]
            assert not (chances > 1e-8).any()
    assert (absent <= logits[:, order].max(1, keepdim=True).values).all()


def test_it_is_the_minimum_of_its_formula():
    """The gradient of ½‖V‖² + C Σₙ −log softmax(…)[yₙ] is zero there."""
    x, y = draw([0, 1, 2])
    weight, shift = fit_linear(x, y, 3, strength=0.3)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation[deviation == 0] = 1
    rows = (weight * deviation).requires_grad_()
    offsets = (shift + weight @ mean).requires_grad_()
    logits = ((x - mean) / deviation) @ rows.T + offsets
    loss = rows.square().sum() / 2 + 0.3 * torch.nn.functional.cross_entropy(
        logits, y, reduction="sum"
    )
    gradients = torch.autograd.grad(loss, [rows, offsets])
    assert max(float(one.abs().max()) for one in gradients) < 1e-5 * len(x)


def test_rounding_of_the_features_does_not_show():
    x, y = draw([0, 1, 2])
    noise = 1 + 1e-7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found, expected = (
        dict(zip("wb", fit_linear(one.float(), y, 3), strict=True)) for one in (x * noise, x)
    )
    assert_same(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_fitted_is_said():
    x, y = draw([0, 1])
    with pytest.raises(UserError, match="its examples are of one class"):
        fit_linear(x, torch.ones_like(y), 2)
    x[3, 1] = torch.inf
    with pytest.raises(UserError, match="the body's features are not finite"):
        fit_linear(x, y, 2)
