"""A linear layer fitted to features and labels: a convex problem, by scikit-learn."""

import warnings

import numpy
import torch
from torch import Tensor

from fmerge.errors import UserError

STRENGTH = 0.01
"""Inverse strength C of the L2 penalty on standardised features."""

_FAR = 20.0
"""How far below the mean of the others a class lies of which there is no example."""


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    bias: bool = True,
    strength: float = STRENGTH,
) -> tuple[Tensor, Tensor]:
    """Fits a linear layer whose softmax is a logistic regression on standardised features.

    A feature that varies by no more than rounding is taken for constant: it is divided by its mean.

    Minimises ½‖V‖² + C Σₙ −log softmax(V(xₙ − μ)/σ + a)[yₙ] over V and a; the layer is
    W = V/σ, b = a − Vμ/σ, so that Wx + b are the very logits. Two classes have one row v and one
    a in the minimum: their logits are ∓(vx + a)/2. A class without examples gets the mean of the
    others' rows, and a bias lower by 20: its probability is below 1e-8 whatever the features.
    Without a bias μ and a are zero, and such a class is at most as likely as the likeliest.

    Args:
        features: xₙ (n, i).
        labels: yₙ (n,), below ``classes``.
        classes: Outputs o of the layer.
        bias: Whether the layer has a bias.
        strength: C.

    Returns:
        W (o, i) and b (o,), in float64; b is zero without a bias.

    Raises:
        UserError: If the features are not finite, or the labels are all the same.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = features.double().numpy(), labels.numpy()
    if not numpy.isfinite(x).all():
        raise UserError("a head cannot be refitted: the body's features are not finite")
    if len(seen := numpy.unique(y)) < 2:
        raise UserError("a head cannot be refitted: its examples are of one class")
    scaler = StandardScaler(with_mean=bias).fit(x)
    mean = numpy.abs(scaler.mean_)
    noise = 16 * torch.finfo(torch.promote_types(features.dtype, torch.float32)).eps * mean
    scaler.scale_ = numpy.where(scaler.scale_ < noise, mean, scaler.scale_)
    # far beyond the default, so that the result does not depend on the features' rounding
    regression = LogisticRegression(C=strength, fit_intercept=bias, tol=1e-8, max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the tolerance is below rounding
        regression.fit(scaler.transform(x), y)
    rows = regression.coef_ / scaler.scale_
    offsets = numpy.zeros(len(rows)) + regression.intercept_
    if bias:
        offsets -= rows @ scaler.mean_
    if len(seen) == 2:
        rows, offsets = (numpy.concatenate([-one / 2, one / 2]) for one in (rows, offsets))
    weight = numpy.tile(rows.mean(axis=0), (classes, 1))
    shift = numpy.full(classes, offsets.mean() - (_FAR if bias else 0.0))
    weight[regression.classes_], shift[regression.classes_] = rows, offsets
    return torch.from_numpy(weight), torch.from_numpy(shift)
