"""Simulated coverage of metrics other than accuracy, alone and as differences of two models."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from coverage_exact import SIZES, Coverage, row, simulated, width
from scipy import stats

from fmerge.report.confidence import DRAWS
from fmerge.report.resamples import (
    Resamples,
    correlation,
    correlation_difference,
    difference,
    spread,
)


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of the second of two classes.

    Args:
        counts: Examples (…, 4) of neither, false, missed and hit.

    Returns:
        The scores (…).
    """
    _, false, missed, hit = np.moveaxis(counts, -1, 0)
    found: np.ndarray = 2 * hit / np.maximum(2 * hit + missed + false, 1e-9)
    return found


def matthews(counts: np.ndarray) -> np.ndarray:
    """Matthews' correlation of two classes, 0 where a side is constant; as ``f1``."""
    none, false, missed, hit = np.moveaxis(counts, -1, 0)
    sides = (hit + false) * (hit + missed) * (none + false) * (none + missed)
    above = np.where(sides > 0, hit * none - false * missed, 0)
    found: np.ndarray = above / np.sqrt(np.maximum(sides, 1e-9))
    return found


def pearson(answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the last dimension."""
    x, y = (one - one.mean(-1, keepdims=True) for one in (answers, targets))
    found: np.ndarray = (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return found


def spearman(answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Spearman's correlation over the last dimension: Pearson's of the ranks."""
    return pearson(stats.rankdata(answers, axis=-1), stats.rankdata(targets, axis=-1))


def resampled_pearson(answers: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's correlation of examples (n,) that are drawn so many times (draws, n)."""
    return _weighted(answers, targets, counts)


def resampled_spearman(answers: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's correlation likewise; no draw is sorted, since all have the examples' order."""
    ranks = []
    for one in (answers, targets):
        order = one.argsort()
        drawn = counts[:, order]
        mean = drawn.cumsum(axis=1) - (drawn - 1) / 2  # the mean rank of an example's copies
        ranks.append(np.empty(counts.shape))
        ranks[-1][:, order] = mean
    return _weighted(ranks[0], ranks[1], counts)


def _weighted(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=1, keepdims=True)
    x, y = (one - (counts * one).sum(axis=1, keepdims=True) / total for one in (x, y))
    found: np.ndarray = (counts * x * y).sum(1) / np.sqrt(
        (counts * x * x).sum(1) * (counts * y * y).sum(1)
    )
    return found


CLASSES = {
    # share of the second class; both models' shares of right answers on it and on the first
    "30% positive, 85 and 80% right": (0.3, (0.85, 0.85), (0.8, 0.8)),
    "10% positive, 90 and 90% right": (0.1, (0.8, 0.95), (0.8, 0.95)),
    "50% positive, 99 and 99% right": (0.5, (0.99, 0.99), (0.99, 0.99)),
}
NUMBERS = {
    # correlations of both models' answers with the truth, and of their errors
    "r = 0.9 and 0.85": (0.9, 0.85, 0.5),
    "r = 0.5 and 0.5": (0.5, 0.5, 0.8),
    "r = 0.1 and 0.3": (0.1, 0.3, 0.3),
}


def chances(positive: float, ours: Sequence[float], theirs: Sequence[float]) -> np.ndarray:
    """Finds how likely each kind of example is; half of them are as hard for both models.

    Args:
        positive: Share of the second class.
        ours: The first model's share of right answers on the second class and on the first.
        theirs: The second model's.

    Returns:
        Chances (2, 2, 2) by class, and by whether the first and the second model are right.
    """
    found = np.zeros((2, 2, 2))
    for label, share in enumerate((1 - positive, positive)):
        one, other = ours[1 - label], theirs[1 - label]
        both = (one * other + min(one, other)) / 2
        found[label] = share * np.array([
            [1 - one - other + both, other - both],
            [one - both, both],
        ])
    return found


def tables(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts neither, false, missed and hit (…, 4) of both models, from (…, 2, 2, 2)."""
    both = (examples.sum(-1), examples.sum(-2))
    one, other = (
        np.stack([by[..., 0, 1], by[..., 0, 0], by[..., 1, 0], by[..., 1, 1]], axis=-1)
        for by in both
    )
    return one, other


def classes(rng: np.random.Generator, repeats: int) -> Iterator[str]:
    """Writes rows of F1 and of Matthews' correlation, and of their differences.

    The resamples are those of ``fmerge.report.resamples.of_classes``, drawn as counts.

    Args:
        rng: Where draws come from.
        repeats: How many samples a row has.

    Yields:
        The rows.
    """
    added = np.zeros((2, 2, 2))
    added[:, 0, 1] = added[:, 1, 0] = 1 / 2
    for name, score, least in (("F1", f1, 0.0), ("Matthews", matthews, -1.0)):
        for n in SIZES:
            for what, models in CLASSES.items():
                each = chances(*models)
                truth = [float(score(one)) for one in tables(each)]
                alone, both = [], []
                for examples in rng.multinomial(n, each.ravel(), repeats):
                    pool = examples.reshape(2, 2, 2) + added
                    drawn = rng.multinomial(n + 2, pool.ravel() / (n + 2), DRAWS)
                    values = [score(one) for one in tables(pool - added)]
                    centres = [score(one) for one in tables(pool)]
                    draws = [score(one) for one in tables(drawn.reshape(-1, 2, 2, 2))]
                    one, other = (
                        Resamples(float(v), float(c), torch.from_numpy(d), n)
                        for v, c, d in zip(values, centres, draws, strict=True)
                    )
                    alone.append(spread(one, least))
                    both.append(difference(one, other, least))
                yield metric_row(
                    [name, n, what],
                    simulated(alone, truth[0]),
                    simulated(both, truth[0] - truth[1]),
                )


def numbers(name: str, rng: np.random.Generator, repeats: int) -> Iterator[str]:
    """Writes rows of correlations and of their differences, of normal numbers.

    The resamples are those of ``fmerge.report.resamples.of_numbers``, drawn at once.

    Args:
        name: Pearson or Spearman.
        rng: Where draws come from.
        repeats: How many samples a row has.

    Yields:
        The rows.
    """
    score, resampled = {
        "Pearson": (pearson, resampled_pearson),
        "Spearman": (spearman, resampled_spearman),
    }[name]
    for n in SIZES:
        for what, (ours, theirs, together) in NUMBERS.items():
            truth = [
                r if name == "Pearson" else 6 / np.pi * np.arcsin(r / 2) for r in (ours, theirs)
            ]
            alone, both = [], []
            for _ in range(repeats):
                target, error, other = rng.normal(size=(3, n))
                other = together * error + (1 - together**2) ** 0.5 * other
                answers = [
                    r * target + (1 - r * r) ** 0.5 * e for r, e in ((ours, error), (theirs, other))
                ]
                chosen = rng.integers(n, size=(DRAWS, n)) + n * np.arange(DRAWS)[:, None]
                counts = np.bincount(chosen.ravel(), minlength=n * DRAWS).reshape(DRAWS, n)
                found = []
                for one in answers:
                    value = float(score(one, target))
                    draws = torch.from_numpy(resampled(one, target, counts))
                    found.append(Resamples(value, value, draws, n))
                alone.append(correlation(found[0]))
                both.append(correlation_difference(*found))
            yield metric_row(
                [name, n, what], simulated(alone, truth[0]), simulated(both, truth[0] - truth[1])
            )


def metric_row(cells: Sequence[object], alone: Coverage, both: Coverage) -> str:
    """Writes one row of a metric."""
    shares = [f"{one.share:.3f}" for one in (alone, both)]
    return row([*cells, shares[0], width(alone), shares[1], width(both)])
