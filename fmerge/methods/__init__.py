"""Merging formulas: pure functions of named tensors, one small class each.

Examples:
    >>> import torch
    >>> from fmerge.methods import TaskArithmetic
    >>> base, expert = {"weight": torch.zeros(2)}, {"weight": torch.ones(2)}
    >>> TaskArithmetic().merge(base, [expert], [0.5])
    {'weight': tensor([0.5000, 0.5000])}
"""

from fmerge.methods.averages import Average, FisherMerge, Isotropic
from fmerge.methods.base import MergeMethod
from fmerge.methods.calibrated import FeatCal, RegMeanPP
from fmerge.methods.medians import FisherMedian
from fmerge.methods.regmean import Gram, Grams, RegMean
from fmerge.methods.sparse import DARE, DELLA, TIES, Breadcrumbs
from fmerge.methods.spectral import TSVM, IsoC
from fmerge.methods.spherical import SLERP, Karcher
from fmerge.methods.task_vectors import DFMerge, TaskArithmetic

__all__ = [
    "DARE",
    "DELLA",
    "SLERP",
    "TIES",
    "TSVM",
    "Average",
    "Breadcrumbs",
    "DFMerge",
    "FeatCal",
    "FisherMedian",
    "FisherMerge",
    "Gram",
    "Grams",
    "IsoC",
    "Isotropic",
    "Karcher",
    "MergeMethod",
    "RegMean",
    "RegMeanPP",
    "TaskArithmetic",
]
