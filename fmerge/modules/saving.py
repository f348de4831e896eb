"""Where a pass saves what is unfinished."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Saving:
    """Where a pass saves its unfinished sums, so that it can be resumed after an interruption.

    Attributes:
        path: A file of this process's own.
        belongs_to: Plain values that identify this pass.
        seconds: Time between two savings.
        stop: Returns the number of the signal that asked to save and end after a batch, or 0.
    """

    path: Path
    belongs_to: Mapping[str, Any]
    seconds: float = 60.0
    stop: Callable[[], int] = lambda: 0
