"""Nested, stratified parts of a split: each has the labels in the proportions of the whole."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Sizes of the parts, as shares of a split; each part contains the one before."""

BLOCKS = len(SHARES)

LEAST = 16
"""Examples that a part adds to the one before, if it adds any."""


def stratified_blocks(
    labels: Sequence[Any], seed: int = 0, least: int = LEAST, shares: Sequence[float] = SHARES
) -> list[list[int]]:
    """Divides examples into disjoint blocks, of which the first k together are part k.

    The examples of a label are put in random order and spaced evenly over the unit interval from
    a random offset; a part is what lies below a cut. The number of a label's examples in a part is
    therefore proportional, up to one example, and all examples are equally likely to be in it.

    Args:
        labels: The label of each example; all values that are not integers count as one label.
        seed: Seed of the order.
        least: Fewest examples of a block; where it would have fewer, it is empty.
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
    # the offset is random, or the first example of every label would always be in the first part
    for members in strata.values():
        begin = float(torch.rand((), generator=generator, dtype=torch.float64))
        places |= {i: (j + begin) / len(members) for j, i in enumerate(members)}
    order = sorted(places, key=places.__getitem__)
    cuts = _cuts(len(order), least, shares)
    return [order[low:high] for low, high in pairwise([0, *cuts])]


def _cuts(count: int, least: int, shares: Sequence[float]) -> list[int]:
    cuts: list[int] = []
    before = 0
    # a cut that would leave a block or the rest below the least size moves to its neighbour
    for share in shares:
        cut = round(share * count) if before else max(round(share * count), least)
        if cut - before < least:
            cut = before
        if share == 1 or count - cut < least:
            cut = count
        cuts.append(before := cut)
    return cuts
