"""Diagonal Fishers, per example and exactly, of any module with log-likelihoods of answers."""

from fmerge.fisher.accumulator import FisherAccumulator, FisherEstimate
from fmerge.fisher.engine.per_example import Fallback
from fmerge.fisher.engine.rules import Rule, register_rule, unregister_rule
from fmerge.fisher.estimate import estimate_fisher
from fmerge.fisher.estimators import ESTIMATORS, Estimator, Weighting, candidate_weights, uniforms
from fmerge.fisher.settings import MERGE_DEFAULTS, Errors, FisherSettings

__all__ = [
    "ESTIMATORS",
    "Errors",
    "Estimator",
    "Fallback",
    "FisherAccumulator",
    "FisherEstimate",
    "FisherSettings",
    "MERGE_DEFAULTS",
    "Rule",
    "Weighting",
    "candidate_weights",
    "estimate_fisher",
    "register_rule",
    "uniforms",
    "unregister_rule",
]
