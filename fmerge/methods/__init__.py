"""Merging formulas: pure functions of named tensors, one small class each."""

from fmerge.methods.averages import Average, FisherMerge, Isotropic
from fmerge.methods.base import MergeMethod
from fmerge.methods.task_vectors import DFMerge, TaskArithmetic

__all__ = ["Average", "DFMerge", "FisherMerge", "Isotropic", "MergeMethod", "TaskArithmetic"]
