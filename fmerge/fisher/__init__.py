"""Diagonal Fishers, per example and exactly, of any module with log-likelihoods of answers."""

from fmerge.fisher.accumulator import (
    Errors,
    FisherAccumulator,
    FisherEstimate,
    estimate_fisher,
)
from fmerge.fisher.engine.per_example import Fallback
from fmerge.fisher.estimators import ESTIMATORS, Estimator, Weighting, candidate_weights, uniforms

__all__ = [
    "ESTIMATORS",
    "Errors",
    "Estimator",
    "Fallback",
    "FisherAccumulator",
    "FisherEstimate",
    "Weighting",
    "candidate_weights",
    "estimate_fisher",
    "uniforms",
]
