"""The standard error of a Fisher, estimated from the variance between batches."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fmerge.params import Params

LEAST_BATCHES = 16
"""Fewest batches to stop after: one stops where the variance looks small by chance, and after
fewer batches the interval then covers the total too rarely."""


@dataclass
class StandardError:
    r"""Standard errors of the total of a Fisher and, on request, of every entry.

    Let S_b be the sum over the n_b examples of batch b, S = Σ S_b and N = Σ n_b. If batches are
    drawn independently, an unbiased estimate of the variance of one example is

    .. math::
        \hat\sigma^2 = \Big(\sum_b S_b^2 / n_b - S^2 / N\Big) / (B - 1),

    and the standard error of S / N is √(σ̂² / N). It is estimated from batches, not examples, since
    these are independent under every estimator: `rademacher` squares sums of whole batches.

    Attributes:
        squares: Σ S_b² / n_b by parameter name; None if only the total is wanted.
        total: Sum of S over all entries.
        total_square: Σ (sum of S_b over all entries)² / n_b.
        batches: B.
        count: N.
    """

    squares: Params | None = None
    total: float = 0.0
    total_square: float = 0.0
    batches: int = 0
    count: int = 0

    def add(self, n: int, total: float, sums: Params | None = None) -> None:
        """Adds a batch.

        Args:
            n: Its number of examples.
            total: Sum of its S_b over all entries.
            sums: S_b by parameter name; needed for the errors of every entry.

        Raises:
            ValueError: If these are wanted and missing.
        """
        self.total += total
        self.total_square += total**2 / n
        self.batches += 1
        self.count += n
        for name, square in (self.squares or {}).items():
            if sums is None:
                raise ValueError("standard errors of the entries need every batch's sums")
            square.addcmul_(sums[name], sums[name], value=1 / n)

    def relative_error(self) -> float:
        """Computes the standard error of the total, relative to the total.

        Returns:
            The relative error; infinite before the second batch.
        """
        if self.batches < 2:
            return math.inf
        if self.total == 0:
            return 0.0
        # rounding may make the difference negative where all batches agree
        variance = max(0.0, self.total_square - self.total**2 / self.count) / (self.batches - 1)
        return math.sqrt(variance / self.count) / (self.total / self.count)

    def relative_interval(self) -> float:
        """Computes half of the 95% interval of the total, relative to the total.

        Returns:
            Student's t of B − 1 degrees of freedom times the relative error, since a variance
            that is estimated from few batches is uncertain itself: 1.96 times the error of 2
            batches would cover the total in 70% of all cases. Infinite before the second batch.
        """
        if self.batches < 2:
            return math.inf
        # imported here, as scipy takes longer to import than all else that a Fisher needs
        from scipy.special import stdtrit

        return float(stdtrit(self.batches - 1, 0.975)) * self.relative_error()

    def enough(self, target: float) -> bool:
        """Says whether the total is known well enough.

        Args:
            target: The relative standard error to reach.

        Returns:
            Whether it is reached after at least ``LEAST_BATCHES``.
        """
        return self.batches >= LEAST_BATCHES and self.relative_error() < target

    def errors(self, sums: Params) -> Params:
        """Computes the standard error of every entry of the Fisher.

        Args:
            sums: S by parameter name.

        Returns:
            By parameter name, on the CPU; infinite before the second batch.
        """
        result: Params = {}
        for name, square in (self.squares or {}).items():
            if self.batches < 2:
                result[name] = torch.full_like(square, math.inf).cpu()
                continue
            variance = square - sums[name].square() / self.count
            variance = variance.clamp_min_(0).div_((self.batches - 1) * self.count)
            result[name] = variance.sqrt_().cpu()
        return result

    def numbers(self) -> Tensor:
        """Gives the numbers that processes add up, or that a checkpoint stores.

        Returns:
            Total, total square, batches and count (4,), float64.
        """
        values = [self.total, self.total_square, self.batches, self.count]
        return torch.tensor(values, dtype=torch.float64)

    def set_numbers(self, numbers: Tensor) -> None:
        """Replaces the numbers, by their sum over processes or by those of a checkpoint.

        Args:
            numbers: As ``numbers`` gave them.
        """
        total, square, batches, count = numbers.tolist()
        self.total, self.total_square = total, square
        self.batches, self.count = int(batches), int(count)


def total_of(sums: Params) -> float:
    """Adds all entries of all tensors.

    Args:
        sums: Names to tensors.

    Returns:
        Their sum: each tensor's in float32 at least, the sum over tensors in float64.
    """
    parts = [
        value.sum(dtype=torch.promote_types(value.dtype, torch.float32)) for value in sums.values()
    ]
    return float(torch.stack([part.double().cpu() for part in parts]).sum()) if parts else 0.0
