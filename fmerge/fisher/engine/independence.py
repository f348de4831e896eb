"""Whether the examples of a batch influence each other, as through statistics of the batch."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fmerge.fisher.batches import LogProbs, example
from fmerge.fisher.engine.together import ALONE, Alone
from fmerge.fisher.estimators import check_numbers

MOST = 4
"""How many examples of a batch are run by themselves."""

_LOG = logging.getLogger(__name__)


def interacting(
    log_probs: LogProbs,
    batch: Any,
    n: int,
    parameters: Iterable[nn.Parameter],
    together: Alone = ALONE,
) -> bool:
    """Compares the log-likelihoods of examples by themselves with those in their batch.

    An example whose ℓ depends on its batch has no Fisher of its own: its gradient would be that of
    another function in every batch.

    Args:
        log_probs: From a batch to ℓ (n, c).
        batch: n examples, of which the first, the last and some between are run by themselves.
        n: Their number.
        parameters: The module's parameters, whose precision sets the tolerance.
        together: The processes, where a model is split over them.

    Returns:
        Whether ℓ differs by more than rounding; False where examples cannot be run by
        themselves, which a warning says, or where ℓ differs from call to call.

    Raises:
        OutOfMemoryError: If there is too little memory for one.
    """
    # with gradients, as everywhere else: gradient checkpointing warns without
    whole = log_probs(batch).detach()
    if whole.ndim != 2 or len(whole) != n:  # which the engine refuses
        return False
    check_numbers(whole)
    chosen = sorted({round(k * (n - 1) / (MOST - 1)) for k in range(MOST)})
    # the square root of the precision, as in the self-check: kernels differ with a batch's size
    tolerance = _coarsest(whole, parameters) ** 0.5
    try:
        alone = {i: log_probs(example(batch, i, n)).detach() for i in chosen}
        for _ in range(len(chosen), together.most(len(chosen))):  # as many passes as others make
            log_probs(example(batch, 0, n))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any kind: whatever a model does with one row of its tensors
        _LOG.warning(
            "an example could not be run by itself, so that it is not known whether the examples "
            "of a batch influence each other: %s", error)  # fmt: skip
        return False
    same = all(_same(one, whole[i : i + 1], tolerance) for i, one in alone.items())
    if not together.any(not same):
        return False
    # random numbers are refused by the engine, with that reason
    return together.any(not same and _same(log_probs(batch).detach(), whole, tolerance))


def _coarsest(values: Tensor, parameters: Iterable[nn.Parameter]) -> float:
    """The coarsest precision that ℓ is computed in; models use float32 inside, whatever it is."""
    dtypes = {torch.float32, values.dtype, *(parameter.dtype for parameter in parameters)}
    if torch.is_autocast_enabled(values.device.type):
        dtypes.add(torch.get_autocast_dtype(values.device.type))
    return max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Compares ℓ; an example by itself may have fewer columns, where the others are −∞."""
    width = one.shape[-1]
    if one.ndim != 2 or len(one) != len(other) or width > other.shape[1]:
        return False
    missing = other[:, width:]
    return bool((missing == -torch.inf).all()) and torch.allclose(
        one, other[:, :width], rtol=tolerance, atol=tolerance
    )
