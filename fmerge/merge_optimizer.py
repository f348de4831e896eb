"""The former path of ``MergeOptimizer``, which is ``fmerge.MergeOptimizer`` now."""

from fmerge.merging.optimizer import MergeOptimizer

__all__ = ["MergeOptimizer"]
