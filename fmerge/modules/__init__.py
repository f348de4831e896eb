"""LightningModules: task modules, and the Fisher pass around one."""

from fmerge.modules.accumulate import Estimation, FisherPass, Saving
from fmerge.modules.base import TaskModule
from fmerge.modules.classification import TextClassifier
from fmerge.modules.heads import HeadedModule
from fmerge.modules.probe import HeadInputs, probe_score
from fmerge.modules.rank_choice import RankChoice
from fmerge.modules.spans import SpanAnswers

__all__ = [
    "Estimation",
    "FisherPass",
    "HeadInputs",
    "HeadedModule",
    "RankChoice",
    "Saving",
    "SpanAnswers",
    "TaskModule",
    "TextClassifier",
    "probe_score",
]
