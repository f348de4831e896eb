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


def normal(value: float, error: float) -> Estimate:
    """Makes the interval value ± 1.96 e.

    Args:
        value: What was measured.
        error: e, its standard error.

    Returns:
        The estimate.
    """
    return Estimate(value, value - _Z * error, value + _Z * error, error)


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


def paired(one: Tensor, other: Tensor) -> Estimate | None:
    r"""Compares two models on the same examples.

    .. math::
        \bar d \pm z \sqrt{\frac{1}{n(n-1)} \sum_n (d_n - \bar d)^2}, d_n = a_n - b_n

    Args:
        one: a (n,), such as 1 where the first model is right and 0 where it is wrong.
        other: b (n,), of the second.

    Returns:
        The mean difference; None for fewer than two examples, which have no spread.
    """
    differences = one.double() - other.double()
    if len(differences) < 2:
        return None
    error = float(differences.std(correction=1)) / math.sqrt(len(differences))
    return normal(float(differences.mean()), error)


def mean_over_tasks(estimates: Sequence[Estimate | None]) -> Estimate | None:
    r"""Averages the numbers of independent tasks.

    .. math::
        \frac1T \sum_t d_t \pm \frac zT \sqrt{\sum_t e_t^2}

    Args:
        estimates: One for each of T tasks.

    Returns:
        The mean; None if the number of a task is unknown.
    """
    known = [one for one in estimates if one is not None]
    if not known or len(known) < len(estimates):
        return None
    value = sum(one.value for one in known) / len(known)
    return normal(value, math.hypot(*(one.error for one in known)) / len(known))


def resampled(
    statistic: Callable[[Tensor], float], examples: int, draws: int = DRAWS, seed: int = 0
) -> Tensor:
    """Computes a statistic on bootstrap resamples.

    The resamples are the same for the same seed and n, so the difference of the results for two
    models is a paired bootstrap.

    Args:
        statistic: From the numbers of n examples, drawn with replacement (n,), to the statistic.
        examples: n.
        draws: How many resamples.
        seed: Seed of the draws.

    Returns:
        The statistic on each resample (draws,).
    """
    generator = torch.Generator().manual_seed(seed)
    found = [
        statistic(torch.randint(examples, (examples,), generator=generator)) for _ in range(draws)
    ]
    return torch.tensor(found, dtype=torch.float64)
