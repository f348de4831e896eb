"""How a diagonal Fisher is estimated: every option and its default, stated once."""

from dataclasses import dataclass
from typing import Literal

from fmerge.errors import UserError
from fmerge.fisher.engine.per_example import Fallback
from fmerge.fisher.estimators import Estimator

Errors = Literal["total", "entries"]
"""Of what standard errors are estimated."""


@dataclass(frozen=True)
class FisherSettings:
    """How a diagonal Fisher is estimated; the defaults are those of ``fmerge fisher``.

    Those of ``fmerge merge`` are ``MERGE_DEFAULTS``.

    Attributes:
        estimator: exact: every class, weighted by its probability; sampled: classes drawn from
            the model; empirical: the true class; rademacher: random signs over whole batches.
        split: Split that the examples come from. Examples of the validation split also choose the
            merge; ``train`` keeps the two apart.
        examples: How many examples, chosen at random and then fixed; all of the split if null.
        samples: Draws per example of ``sampled``; backward passes of ``rademacher``.
        seed: Seed of the choice and of the draws.
        until: Stop when the relative standard error of the Fisher's total, estimated from the
            batches so far, is below this; 0.05 is 5%. At most ``examples`` are used.
        standard_error: Estimate that relative standard error without stopping by it.
        fallback: How to differentiate parameters that no rule covers: exactly, example by
            example, by vmap or a loop; or stop with an error that names them.
        curve: For DFMerge, at how many coefficients between 0 and 1 each task's Fisher is
            computed, once, and interpolated in between: a trial then needs no gradient. So many
            copies of every Fisher stay in memory, or on the output's disk if less than a fifth
            of the memory would remain free. 0 computes them anew in every trial, as the paper
            does.
    """

    estimator: Estimator = "exact"
    split: Literal["train", "validation", "test"] = "train"
    examples: int | None = None
    samples: int = 1
    seed: int = 0
    until: float | None = None
    standard_error: bool = False
    fallback: Fallback = "vmap"
    curve: int = 0

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            UserError: If one is out of its range.
        """
        for name, value in (("examples", self.examples), ("samples", self.samples)):
            if value is not None and value < 1:
                raise UserError(f"{name}: is {value}, but a Fisher needs at least 1")
        if self.curve < 0 or self.curve == 1:
            raise UserError(f"curve: is {self.curve}, but a curve needs 2 nodes; 0 is no curve")
        if self.until is not None and not 0 < self.until < 1:
            raise UserError(f"until: is {self.until}, but a relative error lies between 0 and 1")

    @property
    def errors(self) -> Errors | None:
        """Of what standard errors are estimated: of the total, where one is asked for."""
        return "total" if self.standard_error or self.until else None


MERGE_DEFAULTS = FisherSettings(split="validation", examples=30)
"""The defaults of ``fmerge merge``: those of DF-Merge (Lee et al., NAACL 2025).

From Python, ``dataclasses.replace(MERGE_DEFAULTS, curve=5)`` changes one and keeps the others.
"""
