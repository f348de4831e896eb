"""Sums of a parameter's squared per-example gradients, by whichever exact way is cheapest.

Letters: n example, t token (any position inside an example), a and b the two sides of a matrix.
"""

import functools
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fmerge.fisher.engine.derived import Part
from fmerge.fisher.engine.experts import Routed
from fmerge.fisher.engine.gradients import Gradients, Outer, Pullback, Rows, Scattered, Summed

CACHE_BYTES = 2**20
"""Scratch buffer of one CPU thread: with the sum it is added to, it fits a second-level cache of
2 MiB."""

DEVICE_BYTES = 2**28
"""Scratch buffer on an accelerator, where few large kernels are faster than many small ones."""

TALL = 2**10
"""Most rows of the scratch buffer: products with more columns than rows are slower on a CPU."""

SMALL_ENTRIES = 2**13
"""On a CPU, matrices of at most so many entries take one batched product, not one product each."""


def add_squares(uses: Sequence[Gradients], total: Tensor) -> None:
    r"""Adds the squared gradients of one parameter, its uses summed before the square.

    .. math::
        total \mathrel{+}= \sum_n \Big(\sum_{u} gradient_u[n]\Big)^2

    Args:
        uses: The parameter's gradients through all its uses in one backward pass.
        total: Of the parameter's shape, contiguous, at least float32.
    """
    forms = {type(use) for use in uses}
    every: Any = uses
    if forms == {Outer}:
        _outer_squares(every, total.view(every[0].left.shape[2], -1))
    elif forms == {Summed}:
        values = every[0].values if len(uses) == 1 else sum(use.values for use in every)
        total.add_(values.to(total.dtype).square().sum(0).view(total.shape))
    elif forms == {Rows}:
        ids, values = _combined(every, total)
        total.index_add_(0, ids.flatten(), values.flatten(0, 1).square_())
    elif forms == {Outer, Rows}:
        outers = [use for use in uses if isinstance(use, Outer)]
        _tied_squares(outers, [use for use in uses if isinstance(use, Rows)], total)
    elif forms == {Scattered}:
        _scattered_squares(every, total)
    elif forms == {Part} and _are_apart(every):
        for (start, stop), own in _by_rows(every).items():
            add_squares(own, total[start:stop])
    elif forms == {Routed} and len(uses) == 1:
        for expert, outer in every[0].by_expert():
            add_squares([outer], total[expert])
    elif forms != {Pullback} or not _pullback_squares(every, total):
        _general_squares(uses, total)


def _by_rows(uses: Sequence[Part]) -> dict[tuple[int, int], list[Gradients]]:
    parts: dict[tuple[int, int], list[Gradients]] = {}
    for use in uses:
        parts.setdefault((use.start, use.stop), []).append(use.own)
    return parts


def _are_apart(uses: Sequence[Part]) -> bool:
    """Whether no two parts overlap, but for those that are the same."""
    ranges = sorted(_by_rows(uses))
    return all(one[1] <= other[0] for one, other in itertools.pairwise(ranges))


def _outer_squares(uses: Sequence[Outer], total: Tensor) -> None:
    """Chooses the cheapest exact way; the README of fmerge/fisher states the cost rule."""
    n, _, a = uses[0].left.shape
    b = uses[0].right.shape[2]
    if sum(use.left.shape[1] for use in uses) == 1:
        # one position per example: (gx)² = g²x², so the whole batch is one product
        left, right = (
            side[:, 0].to(total.dtype).square() for side in (uses[0].left, uses[0].right)
        )
        total.addmm_(left.T, right)
        return
    if total.is_cuda and _has_triton():
        from fmerge.fisher.engine.triton_kernel import add_if_faster  # imports Triton

        if add_if_faster([use.left for use in uses], [use.right for use in uses], total):
            return
    entries = max(1, _buffer_bytes(total) // uses[0].left.element_size())
    if total.is_cuda or a * b <= SMALL_ENTRIES:
        size = max(1, entries // (a * b))
        for start in range(0, n, size):
            chunk = slice(start, start + size)
            products = uses[0].left[chunk].transpose(1, 2) @ uses[0].right[chunk]
            for use in uses[1:]:
                products.baddbmm_(use.left[chunk].transpose(1, 2), use.right[chunk])
            total.add_(products.to(total.dtype).square_().sum(0))
        return
    height = _even(a, TALL)
    width = _even(b, max(1, entries // height))
    buffer = uses[0].left.new_empty(height * width)
    for rows, columns in itertools.product(_slices(a, height), _slices(b, width)):
        # a block so small that buffer and sum stay in the cache for all examples
        accumulated = total[rows, columns]
        product = buffer[: accumulated.numel()].view(accumulated.shape)
        sides = [
            (use.left[..., rows].transpose(1, 2).unbind(), use.right[..., columns].unbind())
            for use in uses
        ]
        for i in range(n):
            torch.mm(sides[0][0][i], sides[0][1][i], out=product)
            for lefts, rights in sides[1:]:
                product.addmm_(lefts[i], rights[i])
            accumulated.addcmul_(product, product)


def _even(length: int, most: int) -> int:
    """Gives the length of slices of about equal length, at most ``most``."""
    return -(-length // -(-length // most))


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _combined(uses: Sequence[Rows], total: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the values that an example adds to the same row.

    Sizes are those of the input, however many rows repeat: nothing waits for a device to count.

    Returns:
        Rows (n, t) and values (n, t, b): each row of an example once with its sum, then any of its
        rows with zeros.
    """
    ids = torch.cat([use.ids for use in uses], dim=1)
    values = torch.cat([use.values for use in uses], dim=1)
    n, t = ids.shape
    ordered, order = ids.sort(dim=1)
    # (n, t): equal ids stand side by side, and get the same place among the example's rows
    place = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    place = torch.cat([place.new_zeros(n, min(1, t)), place], dim=1)
    rows = ordered[:, :1].repeat(1, t).scatter_(1, place, ordered)
    place += torch.arange(n, device=ids.device)[:, None] * t
    place = torch.empty_like(place).scatter_(1, order, place)
    sums = total.new_zeros(n * t, values.shape[2])
    sums.index_add_(0, place.flatten(), values.flatten(0, 1).to(total.dtype))
    return rows, sums.view(n, t, -1)


def _tied_squares(outers: Sequence[Outer], rows: Sequence[Rows], total: Tensor) -> None:
    """A table that is read by row and multiplied by: (A + R)², R in few rows for each example.

    Rows with both parts are left out of the products and squared separately. So nothing is ever
    subtracted from a sum of squares, and nothing cancels.
    """
    ids, sums = _combined(rows, total)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :1]
    masked = []
    for use in outers:
        places = ids[:, None].expand(-1, use.left.shape[1], -1)
        sums += use.left.gather(2, places).to(sums.dtype).mT @ use.right.to(sums.dtype)
        masked.append(Outer(use.left.scatter(2, places, 0), use.right))
    _outer_squares(masked, total)
    # places beyond an example's last row hold its first row again, which counts once
    sums.square_().mul_(first[..., None])
    total.index_add_(0, ids.flatten(), sums.flatten(0, 1))


def _buffer_bytes(total: Tensor) -> int:
    return DEVICE_BYTES if total.is_cuda else CACHE_BYTES * torch.get_num_threads()


def _chunks(n: int, entries: int, total: Tensor) -> Iterator[slice]:
    """Splits n examples into chunks as large as the scratch buffer allows."""
    size = max(1, _buffer_bytes(total) // (entries * total.element_size()))
    for start in range(0, n, size):
        yield slice(start, start + size)


def _scattered_squares(uses: Sequence[Scattered], total: Tensor) -> None:
    for chunk in _chunks(len(uses[0].values), total.numel(), total):
        gradients = sum(
            use.scatter(use.values[chunk].to(total.dtype), total.numel()) for use in uses
        )
        total.add_(gradients.square().sum(0).view(total.shape))  # type: ignore[union-attr]


def _pullback_squares(uses: Sequence[Pullback], total: Tensor) -> bool:
    """Pulls back many examples at once; returns False, with nothing added, if it cannot."""
    sources = [use.source for use in uses]
    entries = max(total.numel(), *(source.numel() for source in sources))
    squares = torch.zeros_like(total)
    for chunk in _chunks(len(uses[0].values), entries, total):
        values = [use.values[chunk] for use in uses]
        try:
            (gradients,) = torch.autograd.grad(
                sources, uses[0].parameter, values, retain_graph=True, is_grads_batched=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a function in the graph of u that takes no batch of gradients
            return False
        squares += gradients.to(total.dtype).square_().sum(0)
    total += squares
    return True


def _general_squares(uses: Sequence[Gradients], total: Tensor) -> None:
    """Adds example by example: right for any mixture of forms."""
    buffer = torch.empty_like(total)
    for i in range(uses[0].examples):
        buffer.zero_()
        for use in uses:
            use.add_gradient(i, buffer)
        total.addcmul_(buffer, buffer)
