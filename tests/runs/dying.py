"""A method whose merges end the process of the worker that makes them."""

import os

from fmerge.methods import TaskArithmetic


class Dying(TaskArithmetic):
    """Task arithmetic; a merge with a first coefficient above 0.6 kills its process.

    Args:
        spared: The process that it does not kill.
    """

    def __init__(self, spared: int) -> None:
        super().__init__()
        self.spared = spared

    def compute(self, inputs, out=None):
        if inputs.coefficients[0] > 0.6 and os.getpid() != self.spared:
            os._exit(9)
        return super().compute(inputs, out)
