"""Means over repeats with Student's 95% interval."""

import statistics
from collections.abc import Sequence

from scipy.stats import t


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of a mean: t₀.₉₇₅ · s / √n.

    Args:
        values: At least two independent repeats.

    Returns:
        The half width, in the values' units.
    """
    n = len(values)
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5


def interval(values: Sequence[float]) -> str:
    """Writes a mean with its interval.

    Args:
        values: Repeats.

    Returns:
        Such as ``52.1 ± 1.3``; the value alone where there is one.
    """
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {half_width(values):.1f}"


def difference(values: Sequence[float], others: Sequence[float]) -> str:
    """Writes the mean of paired differences with its interval.

    Args:
        values: Repeats.
        others: What each is compared with, in the same order.

    Returns:
        Such as ``+1.3 ± 0.8``.
    """
    pairs = [value - other for value, other in zip(values, others, strict=True)]
    text = interval(pairs)
    return text if text.startswith("-") else f"+{text}"


def detectable(values: Sequence[float], others: Sequence[float], power: float = 0.8) -> str:
    """Computes the true difference that repeats of this spread find: (t₀.₉₇₅ + t_power) s / √n.

    Args:
        values: Repeats.
        others: What each is compared with, in the same order.
        power: The share of experiments of n repeats whose 95% interval then excludes 0.

    Returns:
        The difference, in the values' units; empty for one repeat.
    """
    n = len(values)
    if n == 1:
        return ""
    pairs = [value - other for value, other in zip(values, others, strict=True)]
    quantiles = float(t.ppf(0.975, n - 1)) + float(t.ppf(power, n - 1))
    return f"{quantiles * statistics.stdev(pairs) / n**0.5:.1f}"
