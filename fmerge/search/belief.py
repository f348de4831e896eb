"""What a search's model of the scores says."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmerge.search.trial import Trial


@dataclass(frozen=True)
class Pick:
    """The trial that a model of the scores would choose.

    Attributes:
        trial: The trial.
        mean: The objective that the model predicts for it.
        error: Standard error of that prediction.
    """

    trial: "Trial"
    mean: float
    error: float


@dataclass(frozen=True)
class Belief:
    """The objective that a model predicts at one value of a coefficient.

    Attributes:
        value: λ; all other coefficients are those of the best trial.
        mean: The objective that the model predicts there.
        error: Standard error of that prediction.
    """

    value: float
    mean: float
    error: float
