"""A Triton kernel for sums of squared gradients of matrices: no gradient reaches memory.

Letters: n example, t token, a and b the two sides of a matrix. Imported only where a sum is on a
GPU and Triton is installed; the README of this folder states when the kernel is chosen.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

SIDES: Final = (128, 64, 32)
"""Sides of a tile, largest first: a larger one reads each input less often. The two float32
accumulators of a side of 128 take half the registers that its eight warps can have."""

SINGLE_TOKENS: Final = 64
"""Most tokens in float32: its products use no matrix unit, so that beyond, they are what costs."""

_HALF: Final = (torch.bfloat16, torch.float16)
_AMPERE: Final = (8, 0)  # before it, no bfloat16 and less shared memory than a tile's inputs need

_LOG = logging.getLogger(__name__)


@triton.jit(do_not_specialize=["n", "t"])  # type: ignore[untyped-decorator]  # Triton has no types
def _add_squares(
    left: tl.tensor,
    right: tl.tensor,
    total: tl.tensor,
    n: tl.tensor,
    t: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    left_n: tl.tensor,
    left_t: tl.tensor,
    left_a: tl.tensor,
    right_n: tl.tensor,
    right_t: tl.tensor,
    right_b: tl.tensor,
    total_a: tl.tensor,
    total_b: tl.tensor,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """Adds one tile (SIDE, SIDE) of the squares: it is read and written once, without atomics.

    Offsets are 64-bit, since n·t·a may pass 2³¹. No step is annotated ``int``: Triton would then
    pass it in 32 bits, and forget that it is one or a multiple of 16.
    """
    across = tl.cdiv(b, SIDE)
    tile = tl.program_id(0)
    rows = (tile // across).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    columns = (tile % across).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    tokens = tl.arange(0, TOKENS).to(tl.int64)
    row_inside, column_inside = (rows < a)[:, None], (columns < b)[None, :]
    left_tile = left + rows[:, None] * left_a
    right_tile = right + columns[None, :] * right_b
    squares = tl.zeros((SIDE, SIDE), tl.float32)
    for _ in range(n):
        gradient = tl.zeros((SIDE, SIDE), tl.float32)
        for start in range(0, t, TOKENS):
            token = start + tokens
            inside = token < t
            x = tl.load(
                left_tile + token[None, :] * left_t, row_inside & inside[None, :], other=0.0
            )
            y = tl.load(
                right_tile + token[:, None] * right_t, inside[:, None] & column_inside, other=0.0
            )
            gradient = tl.dot(x, y, gradient, input_precision="ieee")
        squares += gradient * gradient
        left_tile += left_n
        right_tile += right_n
    place = total + rows[:, None] * total_a + columns[None, :] * total_b
    present = row_inside & column_inside
    tl.store(place, tl.load(place, present) + squares, present)


def tile_side(a: int, b: int, t: int, dtype: torch.dtype, multiprocessors: int) -> int | None:
    """Chooses the side of the kernel's tiles.

    Args:
        a: Rows of the matrix.
        b: Its columns.
        t: Tokens of an example, all uses together.
        dtype: Of the inputs.
        multiprocessors: How many tiles the device works on at once.

    Returns:
        The largest side that gives every multiprocessor a tile and is at most the matrix's own;
        None where the kernel is not expected to be faster than batched products.
    """
    if t < 2 or not (dtype in _HALF or (dtype == torch.float32 and t <= SINGLE_TOKENS)):
        return None
    for side in SIDES:
        tiles = triton.cdiv(a, side) * triton.cdiv(b, side)
        if side <= min(a, b) and tiles >= multiprocessors:
            return side
    return None


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
    device, dtype = total.device, lefts[0].dtype
    same = {side.dtype for side in (*lefts, *rights)} == {dtype} and total.dtype == torch.float32
    if not same or torch.cuda.get_device_capability(device) < _AMPERE:
        return False
    count = torch.cuda.get_device_properties(device).multi_processor_count
    a, b = total.shape
    side = tile_side(a, b, sum(left.shape[1] for left in lefts), dtype, count)
    if side is None or not _proved(device, dtype, side):
        return False
    # uses are added before the square, as tokens are: they are more tokens
    left, right = (
        torch.cat(list(sides), 1) if len(sides) > 1 else sides[0] for sides in (lefts, rights)
    )
    add_squares(left, right, total, side)
    return True


def add_squares(left: Tensor, right: Tensor, total: Tensor, side: int) -> None:
    """Launches the kernel: total += Σₙ (Σₜ left[n,t] ⊗ right[n,t])², the same on every run.

    Products and sums are float32; products of float32 are not rounded to TF32, whatever torch
    was told about its own.

    Args:
        left: (n, t, a) of float32, bfloat16 or float16, with any strides.
        right: (n, t, b) of the same type.
        total: (a, b) of float32.
        side: One of ``SIDES``.

    Raises:
        ValueError: If shapes or types do not belong together.
    """
    (n, t, a), b = left.shape, right.shape[-1]
    if right.shape != (n, t, b) or total.shape != (a, b):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (left, right, total))
        raise ValueError(f"expected (n, t, a), (n, t, b) and (a, b), not {shapes}")
    if left.dtype not in {*_HALF, torch.float32} or right.dtype != left.dtype:
        raise ValueError(f"expected float32, bfloat16 or float16, not {left.dtype}, {right.dtype}")
    if total.dtype != torch.float32:
        raise ValueError(f"expected a float32 sum, not {total.dtype}")
    # 16 is the least that a matrix unit multiplies, 128 bytes are a line of the cache
    tokens = min(128 // left.element_size(), max(16, triton.next_power_of_2(t)))
    with torch.cuda.device(total.get_device()):
        _add_squares[(triton.cdiv(a, side) * triton.cdiv(b, side),)](
            left,
            right,
            total,
            n,
            t,
            a,
            b,
            *left.stride(),
            *right.stride(),
            *total.stride(),
            SIDE=side,
            TOKENS=tokens,
            num_warps=8 if side == SIDES[0] else 4,
            num_stages=3,
        )


@functools.cache
def _proved(device: torch.device, dtype: torch.dtype, side: int) -> bool:
    """Tries the kernel once: a machine may lack the C compiler that Triton starts it with."""
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
