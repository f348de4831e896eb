"""Ranks and thresholds of magnitudes, and draws that depend only on a key."""

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_HALF = 16  # bits of a float32 that one histogram counts by


def thresholds(
    vectors: Callable[[], Iterable[tuple[int, Tensor]]], density: float, count: int
) -> list[float]:
    """Finds the smallest magnitude among the largest ``density`` of a vector's entries, exactly.

    The bits of float32 numbers ≥ 0, read as integers, are in the numbers' order. A histogram of
    the upper half of the bits finds the bucket of the number, and one of the lower half inside
    that bucket finds the number itself: two passes and no copy of all entries.

    Args:
        vectors: Returns the parts of the vectors, of any shapes, each with the number of its
            vector; called once for each pass.
        density: Share in (0, 1] of the entries; at least one is counted.
        count: The number of vectors.

    Returns:
        The k-th largest magnitude of each in float32, k = round(density · entries), at least 1.
    """
    upper = torch.zeros(count, 1 << _HALF, dtype=torch.int64)
    for number, vector in vectors():
        upper[number] += torch.bincount(_bits(vector) >> _HALF, minlength=1 << _HALF).cpu()
    wanted = [max(1, round(density * int(one.sum()))) for one in upper]
    found = [_from_the_top(one, place) for one, place in zip(upper, wanted, strict=True)]
    lower = torch.zeros_like(upper)
    for number, vector in vectors():
        bits = _bits(vector)
        inside = bits[bits >> _HALF == found[number][0]] & ((1 << _HALF) - 1)
        lower[number] += torch.bincount(inside, minlength=1 << _HALF).cpu()
    rests = [_from_the_top(one, place)[0] for one, (_, place) in zip(lower, found, strict=True)]
    numbers = [bucket << _HALF | rest for (bucket, _), rest in zip(found, rests, strict=True)]
    return torch.tensor(numbers, dtype=torch.int32).view(torch.float32).tolist()


def trim(vector: Tensor, smallest: float) -> Tensor:
    """Zeroes the entries below a magnitude.

    Args:
        vector: Any shape.
        smallest: The result of ``thresholds``: entries of that float32 magnitude stay.

    Returns:
        A new tensor of that shape.
    """
    return vector * (vector.abs().float() >= smallest)


def ranks(magnitudes: Tensor) -> Tensor:
    """Ranks the entries of each row, 0 the smallest; equal ones by their position.

    Args:
        magnitudes: Shape (rows, entries).

    Returns:
        Integers of that shape.
    """
    order = magnitudes.argsort(dim=1, stable=True)
    positions = torch.arange(magnitudes.shape[1], device=magnitudes.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions)


def sample(vector: Tensor, keep: Tensor, key: str) -> Tensor:
    """Keeps entries at random and divides them by their probability, so that the mean is unbiased.

    Args:
        vector: Any shape.
        keep: Probabilities in (0, 1] of that shape, or one for all.
        key: Seed of the draws, which depend on it and on the shape only.

    Returns:
        A new tensor of that shape.
    """
    # hash() differs between processes, and a GPU's generator from the CPU's
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(vector.shape, generator=generator).to(vector.device)
    keep = keep.to(vector)
    return torch.where(draws < keep, vector / keep, torch.zeros_like(vector))


def _bits(vector: Tensor) -> Tensor:
    return vector.abs().float().reshape(-1).contiguous().view(torch.int32)


def _from_the_top(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bucket that holds the ``wanted``-th largest number, and its place inside from the top."""
    above = counts.flip(0).cumsum(0)
    passed = int((above < wanted).sum())
    before = int(above[passed - 1]) if passed else 0
    return len(counts) - 1 - passed, wanted - before
