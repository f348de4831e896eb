"""Summaries of diagonal Fishers: where their mass lies, and how much those of tasks overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from fmerge import params

_CHUNK = 1 << 20
"""Entries of a tensor that are compared at once, few enough for the cache to hold all tasks'."""


@dataclass(frozen=True)
class FisherSummary:
    """Where the Fishers of several tasks lie.

    Attributes:
        names: The experts.
        layers: Layer to the share of each expert's total that lies in it, in order.
        means: The mean entry of each expert's Fisher.
        cosines: Σᵢ FᵢGᵢ / (‖F‖ ‖G‖) of every two Fishers F and G, by row and column.
        overlaps: Σᵢ min(Fᵢ / ΣF, Gᵢ / ΣG), likewise: 1 if both have the same share in every entry,
            0 if no entry is nonzero in both.
        shared: Layer to the part of each overlap that lies in it, of every two experts in order.
    """

    names: Sequence[str]
    layers: Mapping[str, Sequence[float]]
    means: Sequence[float]
    cosines: Sequence[Sequence[float]]
    overlaps: Sequence[Sequence[float]]
    shared: Mapping[str, Sequence[float]]


def summarise_fishers(fishers: Mapping[str, Mapping[str, Tensor]]) -> FisherSummary:
    """Measures the Fishers of several tasks.

    Args:
        fishers: Expert to its Fisher by parameter name, all of one layout. They are read one
            tensor at a time, and not changed.

    Returns:
        The summary. A Fisher of zeros has shares, cosines and overlaps of 0.
    """
    names, count = list(fishers), len(fishers)
    first = next(iter(fishers.values()))
    entries = 0
    layers: dict[str, Tensor] = {}
    for key in first:
        sums = torch.stack([
            fishers[name][key].detach().cpu().sum(dtype=torch.float64) for name in names
        ])
        layers[layer_of(key)] = layers.get(layer_of(key), torch.zeros(())) + sums
        entries += first[key].numel()
    totals = torch.stack(list(layers.values())).sum(0)
    safe = totals.clamp_min(torch.finfo(torch.float64).tiny)
    products, overlaps = torch.zeros(2, count, count, dtype=torch.float64)
    shared = {layer: torch.zeros(count, count, dtype=torch.float64) for layer in layers}
    for key in first:
        own = shared[layer_of(key)]
        flat = [fishers[name][key].detach().flatten() for name in names]
        for start in range(0, len(flat[0]), _CHUNK):
            part = torch.stack([one[start : start + _CHUNK].cpu().double() for one in flat])
            part /= safe[:, None]  # cosines are scale-invariant, overlaps compare shares
            products += part @ part.T
            # a tensor of all pairs would be count times as large as the chunk
            for a in range(count):
                both = torch.minimum(part[a], part[a:]).sum(1)
                overlaps[a, a:] += both
                own[a, a:] += both
    overlaps = overlaps.triu() + overlaps.triu(1).T
    norms = products.diagonal().sqrt()
    cosines = products / torch.outer(norms, norms).clamp_min(torch.finfo(torch.float64).tiny)
    pairs = list(combinations(range(count), 2))
    return FisherSummary(
        names,
        {layer: (sums / safe).tolist() for layer, sums in layers.items()},
        (totals / max(entries, 1)).tolist(),
        cosines.tolist(),
        overlaps.tolist(),
        {layer: [float(own[pair]) for pair in pairs] for layer, own in shared.items()},
    )


def layer_of(name: str) -> str:
    """Cuts a parameter's name to its layer.

    Args:
        name: For instance ``bert.encoder.layer.0.output.dense.weight``.

    Returns:
        Up to the first number (``bert.encoder.layer.0``), else up to two parts.
    """
    return params.layer_of(name) or ".".join(name.split(".")[:-1][:2]) or name
