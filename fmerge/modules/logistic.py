"""A linear layer fitted to features and labels: a convex problem, by scikit-learn."""

import warnings
from typing import Any

import numpy
import torch
from torch import Tensor

from fmerge.errors import UserError

STRENGTH = 0.01
"""Inverse strength C of the L2 penalty on standardised features."""

_FAR = 20.0
"""How far the bias of a class without examples lies below the mean of the others."""


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    bias: bool = True,
    strength: float = STRENGTH,
) -> tuple[Tensor, Tensor]:
    """Fits a linear layer by logistic regression on standardised features.

    Minimises ½‖V‖² + C Σₙ −log softmax(V(xₙ − μ)/σ + a)[yₙ] over V and a. The layer is
    W = V/σ, b = a − Vμ/σ: Wx + b are the same logits. For two classes the minimum has one row v
    and one a, and the logits are ∓(vx + a)/2. A class without examples gets the mean of the other
    rows and a bias lower by 20: its probability is below 1e-8 for all features. Without a bias μ
    and a are zero, and such a class is at most as likely as the likeliest one.

    A feature that varies by no more than rounding counts as constant: σ is then its mean.

    Args:
        features: xₙ (n, i).
        labels: yₙ (n,), below ``classes``.
        classes: Outputs o of the layer.
        bias: Whether the layer has a bias.
        strength: C.

    Returns:
        W (o, i) and b (o,), in float64; b is zero without a bias.

    Raises:
        UserError: If the features are not finite, or all labels are the same.
    """
    x, y = features.double().numpy(), labels.numpy()
    if not numpy.isfinite(x).all():
        raise UserError("a head cannot be refitted: the body's features are not finite")
    if len(numpy.unique(y)) < 2:
        raise UserError("a head cannot be refitted: its examples are of one class")
    scaler = _scaler(x, bias, features.dtype)
    regression = _minimum(scaler.transform(x), y, bias, strength)
    rows = regression.coef_ / scaler.scale_
    offsets = numpy.zeros(len(rows)) + regression.intercept_
    if bias:
        offsets -= rows @ scaler.mean_
    if len(regression.classes_) == 2:
        rows, offsets = (numpy.concatenate([-one / 2, one / 2]) for one in (rows, offsets))
    weight = numpy.tile(rows.mean(axis=0), (classes, 1))
    shift = numpy.full(classes, offsets.mean() - (_FAR if bias else 0.0))
    weight[regression.classes_], shift[regression.classes_] = rows, offsets
    return torch.from_numpy(weight), torch.from_numpy(shift)


def _scaler(x: Any, centred: bool, dtype: torch.dtype) -> Any:
    """Finds μ and σ of features (n, i) that were computed in some precision."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=centred).fit(x)
    # dividing by the deviation of a feature that varies by rounding alone would amplify it
    mean = numpy.abs(scaler.mean_)
    noise = 16 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps * mean
    scaler.scale_ = numpy.where(scaler.scale_ < noise, mean, scaler.scale_)
    return scaler


def _minimum(x: Any, y: Any, bias: bool, strength: float) -> Any:
    """Fits scikit-learn's regression, far beyond its default tolerance."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # so that the result does not depend on how the features were rounded, as by the batch size
    regression = LogisticRegression(C=strength, fit_intercept=bias, tol=1e-8, max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the tolerance is below rounding
        return regression.fit(x, y)
