"""LightningModules: task modules, and the Fisher pass around one."""

from fmerge.modules.accumulate import FisherPass
from fmerge.modules.base import TaskModule
from fmerge.modules.classification import TextClassifier
from fmerge.modules.probe import HeadInputs, probe_accuracy
from fmerge.modules.rank_choice import RankChoice

__all__ = [
    "FisherPass",
    "HeadInputs",
    "RankChoice",
    "TaskModule",
    "TextClassifier",
    "probe_accuracy",
]
