"""95% confidence intervals of scores, and of differences of scores on the same examples.

Letters: n example, p share of n examples, d difference, e standard error, T tasks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

LEVEL = 0.95
DRAWS = 200
"""Bootstrap resamples; they give a standard error to about 1/√(2 · 200) = 5%."""

FEW = 5
"""Right or wrong examples up to which an accuracy has another interval than Wilson's."""

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Estimate:
    """A number estimated from examples, with its confidence interval.

    Attributes:
        value: The number.
        low: Lower end of its 95% confidence interval.
        high: Upper end.
        error: Its standard error.
    """

    value: float
    low: float
    high: float
    error: float

    def ends(self) -> list[float]:
        """Lists the number and its interval.

        Returns:
            Value, lower and upper end.
        """
        return [self.value, self.low, self.high]

    @property
    def decided(self) -> bool:
        """Whether the interval of a difference excludes zero."""
        return self.low > 0 or self.high < 0


def wilson(share: float, examples: int) -> Estimate:
    r"""Makes Wilson's interval of a share, which stays inside [0, 1] and is never empty.

    .. math::
        \frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    Args:
        share: p, such as an accuracy.
        examples: n.

    Returns:
        The estimate. Its standard error is the distance to the farther end, divided by z.
    """
    shrunk = _Z**2 / examples
    centre = (share + shrunk / 2) / (1 + shrunk)
    spread = math.sqrt(share * (1 - share) / examples + (shrunk / (2 * _Z)) ** 2)
    half = _Z * spread / (1 + shrunk)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(share, low, high, max(high - share, share - low) / _Z)


def proportion(share: float, examples: int) -> Estimate:
    r"""Makes the interval of a share: Wilson's, or Agresti and Coull's where that one is short.

    Wilson's covers as little as 84% where fewer than one wrong example is expected. With at most
    ``FEW`` right or wrong examples the interval is therefore that of Agresti and Coull (1998),

    .. math::
        \tilde p \pm z \sqrt{\tilde p (1 - \tilde p) / \tilde n}, \quad
        \tilde n = n + z^2, \quad \tilde p = (np + z^2 / 2) / \tilde n,

    which has the same centre and contains Wilson's.

    Args:
        share: p, such as an accuracy.
        examples: n.

    Returns:
        The estimate, inside [0, 1]; its standard error as Wilson's.
    """
    right = round(share * examples)
    if min(right, examples - right) > FEW:
        return wilson(share, examples)
    number = examples + _Z**2
    centre = (share * examples + _Z**2 / 2) / number
    half = _Z * math.sqrt(centre * (1 - centre) / number)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(share, low, high, max(high - share, share - low) / _Z)


def paired(one: Tensor, other: Tensor) -> Estimate | None:
    """Compares the accuracies of two models on the same examples, by ``bonett_price``.

    Args:
        one: 1 where the first model is right, 0 where it is wrong (n,).
        other: The same of the second (n,).

    Returns:
        The mean difference; None for fewer than two examples, which have no spread.
    """
    if len(one) < 2:
        return None
    return bonett_price(int((one > other).sum()), int((one < other).sum()), len(one))


def bonett_price(first: int, second: int, examples: int) -> Estimate:
    r"""Makes the interval of a difference of paired shares (Bonett and Price 2012, adjusted Wald).

    .. math::
        \tilde p_1 - \tilde p_2 \pm z \sqrt{\frac{\tilde p_1 + \tilde p_2
        - (\tilde p_1 - \tilde p_2)^2}{n + 2}}, \quad \tilde p_k = \frac{b_k + 1}{n + 2}

    It is the usual interval with one more example that only the first model gets right and one
    that only the second does. Without them it is empty where both always agree.

    Args:
        first: b₁, how many examples only the first model gets right.
        second: b₂, how many only the second does.
        examples: n.

    Returns:
        The difference (b₁ − b₂)/n, inside [−1, 1].
    """
    ours, theirs = (first + 1) / (examples + 2), (second + 1) / (examples + 2)
    centre = ours - theirs
    error = math.sqrt((ours + theirs - centre**2) / (examples + 2))
    low, high = max(-1.0, centre - _Z * error), min(1.0, centre + _Z * error)
    return Estimate((first - second) / examples, low, high, error)


def mean_over_tasks(estimates: Sequence[Estimate | None]) -> Estimate | None:
    r"""Averages the numbers of independent tasks, with the interval of Zou and Donner (2008).

    .. math::
        \Big[\bar v - \frac1T \sqrt{\sum_t (v_t - l_t)^2},
        \bar v + \frac1T \sqrt{\sum_t (u_t - v_t)^2}\Big]

    for values v and intervals [l, u]: each side has its own width. For intervals v ± z e it is
    the usual one.

    Args:
        estimates: One for each of T tasks.

    Returns:
        The mean; None if the number of a task is unknown.
    """
    known = [one for one in estimates if one is not None]
    if not known or len(known) < len(estimates):
        return None
    number = len(known)
    value = sum(one.value for one in known) / number
    return Estimate(
        value,
        value - math.hypot(*(one.value - one.low for one in known)) / number,
        value + math.hypot(*(one.high - one.value for one in known)) / number,
        math.hypot(*(one.error for one in known)) / number,
    )


def resampled(
    statistic: Callable[[Tensor], float],
    examples: int,
    draws: int = DRAWS,
    seed: int = 0,
    size: int | None = None,
) -> Tensor:
    """Computes a statistic on bootstrap resamples.

    The resamples are the same for the same seed and n, so the difference of the results for two
    models is a paired bootstrap.

    Args:
        statistic: From the numbers of n examples, drawn with replacement (n,), to the statistic.
        examples: n.
        draws: How many resamples.
        seed: Seed of the draws.
        size: How many examples a resample has; n when left out.

    Returns:
        The statistic on each resample (draws,).
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (examples if size is None else size,)
    found = [statistic(torch.randint(examples, shape, generator=generator)) for _ in range(draws)]
    return torch.tensor(found, dtype=torch.float64)
