"""LightningModules: task modules, and the passes around one."""

from fmerge.modules.accumulate import Estimation, FisherPass, Saving
from fmerge.modules.base import TaskModule
from fmerge.modules.classification import TextClassifier
from fmerge.modules.grams import GramPass, linear_weights
from fmerge.modules.head_inputs import HeadInputs, last_linear
from fmerge.modules.heads import HeadedModule
from fmerge.modules.logistic import fit_linear
from fmerge.modules.outcomes import Outcomes, recording
from fmerge.modules.rank_choice import RankChoice
from fmerge.modules.spans import SpanAnswers

__all__ = [
    "Estimation",
    "FisherPass",
    "GramPass",
    "HeadInputs",
    "HeadedModule",
    "Outcomes",
    "RankChoice",
    "Saving",
    "SpanAnswers",
    "TaskModule",
    "TextClassifier",
    "fit_linear",
    "last_linear",
    "linear_weights",
    "recording",
]
