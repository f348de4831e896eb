"""What assembles the merges of a search, by one method or by several."""

from typing import Protocol

from fmerge.merging.assembler import Assembler


class Assemblers(Protocol):
    """What assembles the merges of a search, by one method or by several."""

    def of(self, method: str) -> Assembler:
        """Finds the assembler of a trial's method.

        Args:
            method: What the trial says of its method.
        """
