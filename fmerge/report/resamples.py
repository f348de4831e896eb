"""Bootstrap intervals of scores other than accuracy, and of their differences.

Letters: n example, K classes, v score, s standard deviation of the score over resamples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fmerge.report.confidence import DRAWS, LEVEL, Estimate, resampled

Score = Callable[[Tensor, Tensor], float]
"""From predictions (n,) and targets (n,) to a score."""

_NEAR_ONE = 1 - 1e-12
"""The correlation above which its Fisher transform is cut off."""


@dataclass(frozen=True)
class Resamples:
    """A score on bootstrap resamples.

    Attributes:
        value: v, the score itself.
        centre: Where its interval is centred: the score of the examples that are drawn from.
        draws: The score on each resample (draws,).
        examples: n.
    """

    value: float
    centre: float
    draws: Tensor
    examples: int


def of_classes(
    score: Score,
    predictions: Tensor,
    targets: Tensor,
    classes: int,
    second: bool = False,
    draws: int = DRAWS,
) -> Resamples:
    """Resamples examples of classes, and two more of them.

    The two are spread evenly over the classes: half of each is answered rightly and half wrongly.
    In a comparison the second model answers them the other way round, so that each model alone is
    right in one of them. For the accuracy this is Agresti and Coull's interval of a share, and
    Bonett and Price's of a difference; without them the spread of a model that makes no mistake,
    or of two that always agree, would be zero.

    Args:
        score: The score; its result must not depend on how often the examples are repeated.
        predictions: Predicted classes (n,).
        targets: True classes (n,).
        classes: K.
        second: Whether the model is the second of a comparison.
        draws: How many resamples; the same examples for equal n and K.

    Returns:
        The score on resamples of n + 2 examples.
    """
    every = torch.arange(classes).to(targets)
    answers = [every, (every + 1) % classes]
    # K copies of the examples, so that each of the 2K additional ones counts 1/K
    given = torch.cat([predictions.repeat(classes), *(answers[::-1] if second else answers)])
    truth = torch.cat([targets.repeat(classes), every, every])
    found = resampled(
        lambda chosen: score(given[chosen], truth[chosen]),
        len(truth),
        draws,
        size=len(targets) + 2,
    )
    return Resamples(score(predictions, targets), score(given, truth), found, len(targets))


def of_numbers(score: Score, predictions: Tensor, targets: Tensor, draws: int = DRAWS) -> Resamples:
    """Resamples examples whose answers are numbers, several labels or tags.

    Args:
        score: The score.
        predictions: Predicted numbers (n,), or probabilities or tags (n, …).
        targets: True numbers (n,), labels or tags (n, …).
        draws: How many resamples; the same examples for equal n.

    Returns:
        The score on resamples of n examples.
    """
    found = resampled(
        lambda chosen: score(predictions[chosen], targets[chosen]), len(targets), draws
    )
    value = score(predictions, targets)
    return Resamples(value, value, found, len(targets))


def spread(found: Resamples, least: float = 0.0) -> Estimate:
    """Makes the interval centre ± t s √(n/(n − 1)) of a score, t of n − 1 degrees of freedom.

    Args:
        found: The resamples.
        least: The smallest score that there is; the largest is 1.

    Returns:
        The estimate, inside [least, 1].
    """
    return _around(found.value, found.centre, found.draws, found.examples, (least, 1.0))


def difference(one: Resamples, other: Resamples, least: float = 0.0) -> Estimate:
    """Makes the interval of a difference of two scores on the same examples.

    Args:
        one: The first model's resamples.
        other: The second's, of the same examples.
        least: The smallest score that there is; the largest is 1.

    Returns:
        The estimate, inside [least − 1, 1 − least].
    """
    value, centre = one.value - other.value, one.centre - other.centre
    ends = least - 1, 1 - least
    return _around(value, centre, one.draws - other.draws, one.examples, ends)


def correlation(found: Resamples) -> Estimate:
    """Makes the interval tanh(z ± t s_z √(n/(n − 1))) of a correlation, z = artanh v.

    Args:
        found: The resamples.

    Returns:
        The estimate, inside [−1, 1]; its standard error is s.
    """
    around = _fisher(torch.tensor(found.value, dtype=torch.float64))
    half = _half(_fisher(found.draws), found.examples)
    low, high = float((around - half).tanh()), float((around + half).tanh())
    value = found.value
    return Estimate(value, min(low, value), max(high, value), float(found.draws.std()))


def correlation_difference(one: Resamples, other: Resamples) -> Estimate:
    r"""Makes the interval of a difference of correlations on the same examples (Zou 2007).

    .. math::
        d - \sqrt{(v_1 - l_1)^2 + (u_2 - v_2)^2 - 2 r (v_1 - l_1)(u_2 - v_2)}

    is its lower end, r the correlation of the two scores over the resamples; the upper end
    likewise.

    Args:
        one: The first model's resamples.
        other: The second's, of the same examples.

    Returns:
        The estimate; its standard error is that of the differences over the resamples.
    """
    mine, its = correlation(one), correlation(other)
    both = torch.stack([one.draws, other.draws])
    together = float(torch.corrcoef(both)[0, 1]) if bool((both.std(1) > 0).all()) else 0.0
    value = one.value - other.value
    below = _sides(mine.value - mine.low, its.high - its.value, together)
    above = _sides(mine.high - mine.value, its.value - its.low, together)
    return Estimate(value, value - below, value + above, float((one.draws - other.draws).std()))


def _sides(one: float, other: float, together: float) -> float:
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * together * one * other))


def _around(
    value: float, centre: float, draws: Tensor, examples: int, ends: tuple[float, float]
) -> Estimate:
    half = _half(draws, examples)
    low, high = max(ends[0], centre - half), min(ends[1], centre + half)
    return Estimate(value, min(low, value), max(high, value), float(draws.std()))


def _half(draws: Tensor, examples: int) -> float:
    # imported here, as scipy takes longer to import than all else that reports need
    from scipy.special import stdtrit

    free = max(examples - 1, 1)
    quantile = float(stdtrit(free, (1 + LEVEL) / 2))
    # the spread over resamples is that of a sample divided by n
    return quantile * float(draws.std()) * math.sqrt((free + 1) / free)


def _fisher(correlations: Tensor) -> Tensor:
    return correlations.clamp(-_NEAR_ONE, _NEAR_ONE).atanh()
