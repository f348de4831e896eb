"""A pass over data: what a plan names, a run makes, and a dry run prices."""

from collections import Counter
from typing import Literal, NamedTuple

from fmerge.data import Split

Cost = Literal["score", "Fisher", "calibration", "step"]
"""What a pass over one example costs: a forward pass, a Fisher's gradients, the parts of forward
passes that fit all layers, one after the other, or a training step."""


class Pass(NamedTuple):
    """One pass over examples of one task.

    Attributes:
        cost: What an example costs. The features of a head refit and a Gram cost a ``score``.
        task: The task.
        split: Where the examples are from.
        examples: How many there are, over all processes.
    """

    cost: Cost
    task: str
    split: Split
    examples: int


Passes = Counter[Pass]
"""How often each pass is made."""
