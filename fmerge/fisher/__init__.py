"""Diagonal Fishers, per example and exactly, of any module with log-likelihoods of answers."""

from fmerge.fisher.accumulator import FisherAccumulator, FisherEstimate, estimate_fisher
from fmerge.fisher.estimators import ESTIMATORS, Estimator, candidate_weights

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "FisherAccumulator",
    "FisherEstimate",
    "candidate_weights",
    "estimate_fisher",
]
