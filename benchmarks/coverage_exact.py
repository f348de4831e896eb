"""Coverage that is summed over all outcomes: of an accuracy, and of a difference of two."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fmerge.report.confidence import Estimate, bonett_price, proportion

SIZES = (30, 100, 1000)
DISCORDANT = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3)
"""Shares of examples on which exactly one of two models is right."""

BALANCES = (0.5, 0.6, 0.75, 0.9, 1.0)
"""Of the discordant examples, the share that the first model gets right."""


@dataclass(frozen=True)
class Coverage:
    """How often an interval holds the true value.

    Attributes:
        share: In how many of all cases.
        width: Its mean width.
    """

    share: float
    width: float


def exact(weights: np.ndarray, ends: np.ndarray, truth: float) -> Coverage:
    """Sums over all outcomes.

    Args:
        weights: Probability of each outcome (k,).
        ends: Lower and upper end at each outcome (2, k).
        truth: The true value.

    Returns:
        The coverage.
    """
    inside = (ends[0] <= truth + 1e-9) & (truth - 1e-9 <= ends[1])
    return Coverage(float(weights @ inside), float(weights @ (ends[1] - ends[0])))


def simulated(found: Sequence[Estimate], truth: float) -> Coverage:
    """Counts over repeats.

    Args:
        found: The estimates.
        truth: The true value.

    Returns:
        The coverage.
    """
    ends = np.array([[one.low, one.high] for one in found]).T
    return exact(np.full(len(found), 1 / len(found)), ends, truth)


def ends_of(found: Sequence[Estimate]) -> np.ndarray:
    """Collects the ends (2, k) of estimates."""
    return np.array([[one.low, one.high] for one in found]).T


def accuracies() -> Iterator[str]:
    """Writes rows of the accuracy's interval, beside Clopper and Pearson's exact one."""
    shares = np.linspace(0.5, 1, 1001)
    for n in SIZES:
        right = np.arange(n + 1)
        ours = ends_of([proportion(one / n, n) for one in right])
        low = stats.beta.ppf(0.025, right, n - right + 1)
        high = stats.beta.ppf(0.975, right + 1, n - right)
        theirs = np.array([np.nan_to_num(low), np.where(right == n, 1.0, high)])
        weights = stats.binom.pmf(right, n, shares[:, None])
        found = [exact(w, ours, p) for w, p in zip(weights, shares, strict=True)]
        others = [exact(w, theirs, p) for w, p in zip(weights, shares, strict=True)]
        least = min(range(len(found)), key=lambda i: found[i].share)
        yield row([
            n,
            f"{found[least].share:.3f} at {100 * shares[least]:.1f}%",
            f"{np.mean([one.share for one in found]):.3f}",
            " / ".join(width(found[i]) for i in (600, 900, 980)),
            " / ".join(width(others[i]) for i in (600, 900, 980)),
        ])  # fmt: skip


def pairs() -> Iterator[str]:
    """Writes rows of the paired difference, beside Tango's interval and Wald's."""
    for n in SIZES:
        most = min(n, int(0.3 * n + 8 * (0.21 * n) ** 0.5) + 3)
        first, second = (
            one.ravel() for one in np.meshgrid(np.arange(most + 1), np.arange(most + 1))
        )
        kept = first + second <= most
        first, second = first[kept], second[kept]
        counts = np.array([first, second, n - first - second]).T
        ours = ends_of([bonett_price(int(b), int(c), n) for b, c, _ in counts])
        others = {"tango": tango(first, second, n), "wald": wald(first, second, n)}
        for share in DISCORDANT:
            found, tangos, walds = [], [], []
            for balance in BALANCES:
                one, other = share * balance, share * (1 - balance)
                weights = stats.multinomial.pmf(counts, n, [one, other, 1 - share])
                found.append(exact(weights, ours, one - other))
                tangos.append(exact(weights, others["tango"], one - other))
                walds.append(exact(weights, others["wald"], one - other))
            cells = [
                f"{min(one.share for one in several):.3f}" for several in (found, tangos, walds)
            ]
            widths = [
                f"{100 * np.mean([one.width for one in several]):.2f}"
                for several in (found, tangos)
            ]
            yield row([n, f"{100 * share:g}%", cells[0], widths[0], cells[1], widths[1], cells[2]])


def tango(first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """Finds the ends (2, k) of Tango's score interval (1998) by bisection."""
    z, d = stats.norm.ppf(0.975), (first - second) / n

    def score(delta: np.ndarray) -> np.ndarray:
        b = -first - second + (2 * n - first + second) * delta
        c = -second * delta * (1 - delta)
        rare = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)
        spread = n * (2 * rare + delta * (1 - delta))
        found: np.ndarray = (first - second - n * delta) / np.sqrt(np.maximum(spread, 1e-300))
        return found

    ends = []
    for far in (-1.0, 1.0):
        inner, outer = d.copy(), np.full_like(d, far)
        for _ in range(50):
            middle = (inner + outer) / 2
            outside = np.abs(score(middle)) > z
            outer, inner = np.where(outside, middle, outer), np.where(outside, inner, middle)
        ends.append(inner)
    return np.array(ends)


def wald(first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """Computes the ends (2, k) of Wald's interval."""
    d = (first - second) / n
    half = stats.norm.ppf(0.975) * np.sqrt(((first + second) / n - d * d) / (n - 1))
    return np.array([d - half, d + half])


def width(found: Coverage) -> str:
    """Writes a width in points."""
    return f"{100 * found.width:.1f}"


def row(cells: Sequence[object]) -> str:
    """Writes a row of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"
