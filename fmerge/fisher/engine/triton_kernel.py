"""Triton kernels for sums of squared gradients of matrices: no example's gradient reaches memory.

Letters: n example, t token, a and b the two sides of a matrix. Imported only where a sum is on a
GPU and Triton is installed; the README of fmerge/fisher states when the kernel is used.

The work is the product of tiles (SIDE, SIDE) of the matrix and examples. Every program gets an
equal share of it: consecutive examples of consecutive tiles. So no multiprocessor waits for others,
however many tiles there are. Little work is shared out by whole tiles instead. A program adds a
tile to the sum if it had all of the tile's examples. Otherwise it writes its part of the tile to
a buffer, and a second kernel joins the parts, in the same order on every run.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

SIDES: Final = {128: 1, 64: 2, 32: 4}
"""Side of a tile to the number of its programs that a multiprocessor runs at once, as many as its
registers and shared memory allow. Largest first: a larger tile reads each input less often."""

SINGLE_TOKENS: Final = 64
"""Most tokens in float32: its products use no matrix unit, and with more tokens they dominate."""

WHOLE_STEPS: Final = 64
"""Most steps (blocks of tokens) of a tile that one program does alone, even if multiprocessors are
idle: sharing them would not save the time of the second launch, which joins the parts."""

_HALF: Final = (torch.bfloat16, torch.float16)
_AMPERE: Final = (8, 0)  # before it, no bfloat16 and less shared memory than a tile's inputs need

_LOG = logging.getLogger(__name__)


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _tile_squares(
    left_tile: tl.tensor,
    right_tile: tl.tensor,
    row_inside: tl.tensor,
    column_inside: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    t: tl.tensor,
    left_n: tl.tensor,
    left_t: tl.tensor,
    right_n: tl.tensor,
    right_t: tl.tensor,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
) -> tl.tensor:
    """Sums the squared gradients of consecutive examples of a tile: (SIDE, SIDE)."""
    # the examples' tokens are one loop, not two: Triton prefetches in the innermost loop only
    tokens = tl.arange(0, TOKENS)
    blocks = tl.cdiv(t, TOKENS)
    squares = tl.zeros((SIDE, SIDE), tl.float32)
    gradient = tl.zeros((SIDE, SIDE), tl.float32)
    for k in range(0, (count * blocks).to(tl.int32)):
        example, token = first + k // blocks, k % blocks * TOKENS
        inside = token + tokens < t
        x = tl.load(
            left_tile + (example * left_n + token * left_t),
            row_inside & inside[None, :],
            other=0.0,
        )
        y = tl.load(
            right_tile + (example * right_n + token * right_t),
            inside[:, None] & column_inside,
            other=0.0,
        )
        gradient = tl.dot(x, y, gradient, input_precision="ieee")  # float32, never TF32
        if token + TOKENS >= t:  # the example's last block: only now is its gradient whole
            squares += gradient * gradient
            gradient = tl.zeros((SIDE, SIDE), tl.float32)
    return squares


@triton.jit(do_not_specialize=["n", "t"])  # type: ignore[untyped-decorator]
def _add_squares(
    left: tl.tensor,
    right: tl.tensor,
    total: tl.tensor,
    parts: tl.tensor,
    n: tl.tensor,
    t: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    left_n: tl.tensor,
    left_t: tl.tensor,
    right_n: tl.tensor,
    right_t: tl.tensor,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """Does one program's share of tiles and examples; parts is (2 · programs, SIDE, SIDE).

    Offsets are 64-bit, since n·t·a may pass 2³¹. No stride is annotated ``int``: Triton would then
    pass it in 32 bits, and forget that it is one or a multiple of 16.
    """
    across = tl.cdiv(b, SIDE)
    work = (tl.cdiv(a, SIDE) * across).to(tl.int64) * n
    start = work * tl.program_id(0) // tl.num_programs(0)
    end = work * (tl.program_id(0) + 1) // tl.num_programs(0)
    tokens, own = tl.arange(0, TOKENS), tl.arange(0, SIDE)
    unit = start
    while unit < end:
        tile = unit // n
        first = unit - tile * n
        count = tl.minimum(n - first, end - unit)
        rows, columns = tile // across * SIDE + own, tile % across * SIDE + own
        row_inside, column_inside = (rows < a)[:, None], (columns < b)[None, :]
        left_tile = left + rows[:, None] + tokens[None, :].to(tl.int64) * left_t
        right_tile = right + columns[None, :] + tokens[:, None].to(tl.int64) * right_t
        squares = _tile_squares(
            left_tile, right_tile, row_inside, column_inside, first=first, count=count, t=t,
            left_n=left_n, left_t=left_t, right_n=right_n, right_t=right_t,
            SIDE=SIDE, TOKENS=TOKENS,
        )  # fmt: skip
        if count == n:
            place = total + rows[:, None] * b + columns[None, :]
            present = row_inside & column_inside
            tl.store(place, tl.load(place, present) + squares, present)
        else:
            # a share is consecutive, so only its first and last tile can be incomplete: two slots
            slot = (2 * tl.program_id(0) + (unit != start)).to(tl.int64)
            tl.store(parts + slot * SIDE * SIDE + own[:, None] * SIDE + own[None, :], squares)
        unit += count


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]
def _join(
    parts: tl.tensor,
    total: tl.tensor,
    n: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    programs: tl.tensor,
    SIDE: tl.constexpr,
) -> None:
    """Adds the parts of one tile to the sum, if more than one program had its examples."""
    across = tl.cdiv(b, SIDE)
    work = (tl.cdiv(a, SIDE) * across).to(tl.int64) * n
    tile = tl.program_id(0).to(tl.int64)
    first = ((tile * n + 1) * programs - 1) // work  # the program with the tile's first example
    last = ((tile * n + n) * programs - 1) // work
    if first != last:
        own = tl.arange(0, SIDE)
        squares = tl.zeros((SIDE, SIDE), tl.float32)
        for program in range(first, last + 1):
            # the second slot, unless the program's share begins inside this tile
            slot = 2 * program + (work * program // programs < tile * n)
            squares += tl.load(parts + slot * SIDE * SIDE + own[:, None] * SIDE + own[None, :])
        rows = tile // across * SIDE + own
        columns = tile % across * SIDE + own
        present = (rows < a)[:, None] & (columns < b)[None, :]
        place = total + rows[:, None] * b + columns[None, :]
        tl.store(place, tl.load(place, present) + squares, present)


def tile_side(a: int, b: int, t: int, dtype: torch.dtype) -> int | None:
    """Chooses the side of the kernel's tiles.

    Args:
        a: Rows of the matrix.
        b: Its columns.
        t: Tokens of an example, all uses together.
        dtype: Of the inputs.

    Returns:
        The largest side that is at most the matrix's own; None where the kernel is not expected
        to be faster than batched products.
    """
    if t < 2 or not (dtype in _HALF or (dtype == torch.float32 and t <= SINGLE_TOKENS)):
        return None
    return next((side for side in SIDES if side <= min(a, b)), None)


def add_if_faster(lefts: Sequence[Tensor], rights: Sequence[Tensor], total: Tensor) -> bool:
    r"""Adds squared gradients where the kernel is expected to win; otherwise does nothing.

    .. math::
        total_{ab} \mathrel{+}= \sum_n \Big(\sum_u \sum_t left_u[n,t,a]\, right_u[n,t,b]\Big)^2

    Args:
        lefts: (n, t, a) of each use u of the matrix.
        rights: (n, t, b) of each use.
        total: (a, b) on a GPU.

    Returns:
        Whether the squares were added.
    """
    dtype = lefts[0].dtype
    if total.dtype != torch.float32 or any(side.dtype != dtype for side in (*lefts, *rights)):
        return False
    a, b = total.shape
    side = tile_side(a, b, sum(left.shape[1] for left in lefts), dtype)
    if side is None or not _verified(total.device, dtype, side):
        return False
    # uses are summed before the square, as tokens are: further uses are further tokens
    left, right = (
        torch.cat(list(sides), 1) if len(sides) > 1 else sides[0] for sides in (lefts, rights)
    )
    add_squares(left, right, total, side)
    return True


def add_squares(left: Tensor, right: Tensor, total: Tensor, side: int) -> None:
    """Launches the kernels: total += Σₙ (Σₜ left[n,t] ⊗ right[n,t])², the same on every run.

    Products and sums are float32. Products of float32 are not rounded to TF32, whatever torch is
    set to do for its own.

    Args:
        left: (n, t, a) of float32, bfloat16 or float16.
        right: (n, t, b) of the same type.
        total: (a, b) of float32, contiguous.
        side: One of ``SIDES``.
    """
    _check_inputs(left, right, total)
    (n, t, a), b = left.shape, right.shape[-1]
    left, right = (x if x.stride(2) == 1 else x.contiguous() for x in (left, right))
    # 16 is the least that a matrix unit multiplies, 128 bytes are a line of the cache
    tokens = min(128 // left.element_size(), max(16, triton.next_power_of_2(t)))
    tiles = triton.cdiv(a, side) * triton.cdiv(b, side)
    programs = min(SIDES[side] * _multiprocessors(total.device), tiles * n)
    if n * triton.cdiv(t, tokens) <= WHOLE_STEPS:
        programs = tiles
    shared = tiles % programs != 0  # else every program has whole tiles
    parts = total.new_empty(2 * programs if shared else 0, side, side)
    sizes = {"n": n, "a": a, "b": b, "SIDE": side, "num_warps": 8 if side == 128 else 4}
    strides = {
        f"{name}_{letter}": stride
        for name, x in (("left", left), ("right", right))
        for letter, stride in zip("nt", x.stride()[:2], strict=True)
    }
    tensors = {"parts": parts, "total": total}
    with torch.cuda.device(total.get_device()):
        _add_squares[(programs,)](
            left=left, right=right, t=t, TOKENS=tokens, num_stages=3, **tensors, **sizes, **strides
        )
        if shared:
            _join[(tiles,)](programs=programs, **tensors, **sizes)


def _check_inputs(left: Tensor, right: Tensor, total: Tensor) -> None:
    (n, t, a), b = left.shape, right.shape[-1]
    if right.shape != (n, t, b) or total.shape != (a, b) or not total.is_contiguous():
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (left, right, total))
        raise ValueError(f"expected (n, t, a), (n, t, b) and contiguous (a, b), not {shapes}")
    if left.dtype not in {*_HALF, torch.float32} or right.dtype != left.dtype:
        raise ValueError(f"expected float32, bfloat16 or float16, not {left.dtype}, {right.dtype}")
    if total.dtype != torch.float32:
        raise ValueError(f"expected a float32 sum, not {total.dtype}")


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _verified(device: torch.device, dtype: torch.dtype, side: int) -> bool:
    """Tries the kernel once, on known numbers; returns whether it gave them."""
    # Triton compiles its launcher with the machine's C compiler, which may be missing
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(3, 71, width, generator=generator).to(device, dtype)
        for width in (2 * side - 16, side)
    )
    expected = (left.double().mT @ right.double()).square().sum(0)
    total = torch.zeros_like(expected, dtype=torch.float32)
    try:
        add_squares(left, right, total, side)
    except Exception as reason:  # of a compiler, a linker or a driver: any kind
        _LOG.warning("batched products are used, since the Triton kernel fails: %s", reason)
        return False
    if not torch.allclose(total.double(), expected, rtol=1e-3, atol=1e-3):
        _LOG.warning("batched products are used, since the Triton kernel gives wrong numbers")
        return False
    return True
