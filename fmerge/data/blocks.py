"""A split in nested parts, each of which has every label in the share it has in the whole."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Of a split: each part holds the one before."""

BLOCKS = len(SHARES)

LEAST = 16
"""Examples that one part has more than the one before, if it has more at all."""


def stratified_blocks(
    labels: Sequence[Any], seed: int = 0, least: int = LEAST, shares: Sequence[float] = SHARES
) -> list[list[int]]:
    """Divides examples into disjoint blocks, of which the first k together are part k.

    The examples of a label are put in random order and spread evenly over the unit interval,
    from a random beginning; the parts are what lies below a cut. So a part has each label's
    share of it but for one example, and each example is in it with one probability.

    Args:
        labels: The label of each example; whatever is no whole number counts as one label.
        seed: Seed of the order.
        least: Examples that a block has at least; it is empty where it would have fewer.
        shares: Sizes of the parts, ascending to 1.

    Returns:
        Positions in ``labels``, a list for each share.
    """
    generator = torch.Generator().manual_seed(seed)
    strata: dict[int | None, list[int]] = {}
    for i in torch.randperm(len(labels), generator=generator).tolist():
        label = labels[i] if isinstance(labels[i], int) else None
        strata.setdefault(label, []).append(i)
    places: dict[int, float] = {}
    for members in strata.values():
        begin = float(torch.rand((), generator=generator, dtype=torch.float64))
        places |= {i: (j + begin) / len(members) for j, i in enumerate(members)}
    order = sorted(places, key=places.__getitem__)
    cuts = _cuts(len(order), least, shares)
    return [order[low:high] for low, high in pairwise([0, *cuts])]


def _cuts(count: int, least: int, shares: Sequence[float]) -> list[int]:
    cuts: list[int] = []
    before = 0
    for share in shares:
        cut = round(share * count) if before else max(round(share * count), least)
        if cut - before < least:
            cut = before
        if share == 1 or count - cut < least:
            cut = count
        cuts.append(before := cut)
    return cuts
