"""Merging formulas: pure functions of named tensors, one small class each.

Examples:
    >>> import torch
    >>> from fmerge.methods import TaskArithmetic
    >>> base, expert = {"weight": torch.zeros(2)}, {"weight": torch.ones(2)}
    >>> TaskArithmetic().merge(base, [expert], [0.5])
    {'weight': tensor([0.5000, 0.5000])}
"""

from fmerge.methods.arcs import MultiSLERP, NuSLERP
from fmerge.methods.auto import Auto
from fmerge.methods.averages import Average, FisherMerge, Isotropic
from fmerge.methods.base import MergeMethod
from fmerge.methods.calibrated import FeatCal, RegMeanPP
from fmerge.methods.core_space import CoreSpace
from fmerge.methods.fisher_tsv import FisherTSV
from fmerge.methods.lines import LiNeS
from fmerge.methods.medians import FisherMedian
from fmerge.methods.model_stock import ModelStock
from fmerge.methods.regmean import Gram, Grams, RegMean
from fmerge.methods.sce import SCE
from fmerge.methods.sparse import DARE, DELLA, TIES, Breadcrumbs
from fmerge.methods.spectral import TSVM, IsoC, IsoCTS
from fmerge.methods.spherical import SLERP, Karcher
from fmerge.methods.task_vectors import DFMerge, TaskArithmetic
from fmerge.methods.wudi import WUDI

__all__ = [
    "DARE",
    "DELLA",
    "SCE",
    "SLERP",
    "TIES",
    "TSVM",
    "WUDI",
    "Auto",
    "Average",
    "Breadcrumbs",
    "CoreSpace",
    "DFMerge",
    "FeatCal",
    "FisherMedian",
    "FisherMerge",
    "FisherTSV",
    "Gram",
    "Grams",
    "IsoC",
    "IsoCTS",
    "Isotropic",
    "Karcher",
    "LiNeS",
    "MergeMethod",
    "ModelStock",
    "MultiSLERP",
    "NuSLERP",
    "RegMean",
    "RegMeanPP",
    "TaskArithmetic",
]
