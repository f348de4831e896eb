"""Sums of the squares of a parameter's gradients, by whichever exact form is cheapest.

Letters: n example, t token (any position inside an example), a and b the two sides of a matrix.
"""

import functools
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fmerge.fisher.engine.gradients import Moved, Outer, Pulled, Rows, Summed, Term

CACHE_BYTES = 2**20
"""The buffer of one CPU thread: with the sum it is added to, a second-level cache of 2 MiB."""

DEVICE_BYTES = 2**28
"""The buffer on an accelerator, where few large kernels beat many small ones."""

TALL = 2**10
"""Most rows of the buffer: products with more columns than rows are slower on a CPU."""

SMALL_ENTRIES = 2**13
"""Matrices up to here cost a CPU less as one batched product than as one product each."""


def add_squares(terms: Sequence[Term], total: Tensor) -> None:
    r"""Adds the squared gradients of one parameter, its uses summed before the square.

    .. math::
        total \mathrel{+}= \sum_n \Big(\sum_{u} gradient_u[n]\Big)^2

    Args:
        terms: All uses of the parameter in one backward pass.
        total: Of the parameter's shape, contiguous, at least float32.
    """
    kinds = {type(term) for term in terms}
    every: Any = terms
    if kinds == {Outer}:
        _outer_squares(every, total.view(every[0].left.shape[2], -1))
    elif kinds == {Summed}:
        values = every[0].values if len(terms) == 1 else sum(term.values for term in every)
        total.add_(values.to(total.dtype).square().sum(0).view(total.shape))
    elif kinds == {Rows}:
        ids, values = _combined(every, total)
        total.index_add_(0, ids.flatten(), values.flatten(0, 1).square_())
    elif kinds == {Outer, Rows}:
        outers = [term for term in terms if isinstance(term, Outer)]
        _tied_squares(outers, [term for term in terms if isinstance(term, Rows)], total)
    elif kinds == {Moved}:
        _moved_squares(every, total)
    elif kinds != {Pulled} or not _pulled_squares(every, total):
        _general_squares(terms, total)


def _outer_squares(terms: Sequence[Outer], total: Tensor) -> None:
    """Chooses the cheapest exact form; the README of this folder states the rule."""
    n, _, a = terms[0].left.shape
    b = terms[0].right.shape[2]
    if sum(term.left.shape[1] for term in terms) == 1:
        # one position per example: (gx)² = g²x², so the whole batch is one product
        left, right = (
            side[:, 0].to(total.dtype).square() for side in (terms[0].left, terms[0].right)
        )
        total.addmm_(left.T, right)
        return
    if total.is_cuda and _has_triton():
        from fmerge.fisher.engine.triton_kernel import (
            add_if_faster,  # here, since it imports Triton
        )

        if add_if_faster([term.left for term in terms], [term.right for term in terms], total):
            return
    entries = max(1, _buffer_bytes(total) // terms[0].left.element_size())
    if total.is_cuda or a * b <= SMALL_ENTRIES:
        size = max(1, entries // (a * b))
        for start in range(0, n, size):
            part = slice(start, start + size)
            products = terms[0].left[part].transpose(1, 2) @ terms[0].right[part]
            for term in terms[1:]:
                products.baddbmm_(term.left[part].transpose(1, 2), term.right[part])
            total.add_(products.to(total.dtype).square_().sum(0))
        return
    height = _even(a, TALL)
    width = _even(b, max(1, entries // height))
    buffer = terms[0].left.new_empty(height * width)
    for rows, columns in itertools.product(_slices(a, height), _slices(b, width)):
        # small enough that buffer and sum stay in the cache for all examples
        accumulated = total[rows, columns]
        product = buffer[: accumulated.numel()].view(accumulated.shape)
        sides = [
            (term.left[..., rows].transpose(1, 2).unbind(), term.right[..., columns].unbind())
            for term in terms
        ]
        for i in range(n):
            torch.mm(sides[0][0][i], sides[0][1][i], out=product)
            for lefts, rights in sides[1:]:
                product.addmm_(lefts[i], rights[i])
            accumulated.addcmul_(product, product)


def _even(length: int, most: int) -> int:
    """The length of slices of about the same, at most that many."""
    return -(-length // -(-length // most))


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _combined(terms: Sequence[Rows], total: Tensor) -> tuple[Tensor, Tensor]:
    """Adds up what one example gives to one row.

    Nothing waits for a device: sizes are those of the input, whatever it repeats.

    Returns:
        Rows (n, t) and values (n, t, b): each row of an example once with its value, then any of
        its rows with zeros.
    """
    ids = torch.cat([term.ids for term in terms], dim=1)
    values = torch.cat([term.values for term in terms], dim=1)
    n, t = ids.shape
    ordered, order = ids.sort(dim=1)
    place = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    place = torch.cat([place.new_zeros(n, min(1, t)), place], dim=1)  # (n, t): which row it is
    rows = ordered[:, :1].repeat(1, t).scatter_(1, place, ordered)
    place += torch.arange(n, device=ids.device)[:, None] * t
    place = torch.empty_like(place).scatter_(1, order, place)
    sums = total.new_zeros(n * t, values.shape[2])
    sums.index_add_(0, place.flatten(), values.flatten(0, 1).to(total.dtype))
    return rows, sums.view(n, t, -1)


def _tied_squares(outers: Sequence[Outer], rows: Sequence[Rows], total: Tensor) -> None:
    """A table that is read by row and multiplied by: (A + R)², R in few rows of each example.

    Rows with both parts are left out of the products and added for themselves, so that nothing
    is ever subtracted from a sum of squares.
    """
    ids, sums = _combined(rows, total)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :1]
    masked = []
    for term in outers:
        places = ids[:, None].expand(-1, term.left.shape[1], -1)
        sums += term.left.gather(2, places).to(sums.dtype).mT @ term.right.to(sums.dtype)
        masked.append(Outer(term.left.scatter(2, places, 0), term.right))
    _outer_squares(masked, total)
    sums.square_().mul_(first[..., None])  # the first row again, in places beyond the last
    total.index_add_(0, ids.flatten(), sums.flatten(0, 1))


def _buffer_bytes(total: Tensor) -> int:
    return DEVICE_BYTES if total.is_cuda else CACHE_BYTES * torch.get_num_threads()


def _parts(n: int, entries: int, total: Tensor) -> Iterator[slice]:
    """Parts of n examples, as large as the buffer allows."""
    size = max(1, _buffer_bytes(total) // (entries * total.element_size()))
    for start in range(0, n, size):
        yield slice(start, start + size)


def _moved_squares(terms: Sequence[Moved], total: Tensor) -> None:
    for part in _parts(len(terms[0].values), total.numel(), total):
        gradients = sum(
            term.scattered(term.values[part].to(total.dtype), total.numel()) for term in terms
        )
        total.add_(gradients.square().sum(0).view(total.shape))  # type: ignore[union-attr]


def _pulled_squares(terms: Sequence[Pulled], total: Tensor) -> bool:
    """Pulls many examples' gradients at once; returns False, with nothing done, if it cannot."""
    sources = [term.source for term in terms]
    entries = max(total.numel(), *(source.numel() for source in sources))
    squares = torch.zeros_like(total)
    for part in _parts(len(terms[0].values), entries, total):
        values = [term.values[part] for term in terms]
        try:
            (gradients,) = torch.autograd.grad(
                sources, terms[0].parameter, values, retain_graph=True, is_grads_batched=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a function below u that does not know batches of gradients
            return False
        squares += gradients.to(total.dtype).square_().sum(0)
    total += squares
    return True


def _general_squares(terms: Sequence[Term], total: Tensor) -> None:
    buffer = torch.empty_like(total)
    examples = next(
        len(term.left if isinstance(term, Outer) else term.values)  # type: ignore[attr-defined]
        for term in terms
    )
    for i in range(examples):
        buffer.zero_()
        for term in terms:
            term.add_gradient(i, buffer)
        total.addcmul_(buffer, buffer)
