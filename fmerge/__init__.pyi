"""The types of the public names, which ``__init__.py`` imports at their first use."""

from fmerge import data as data
from fmerge import methods as methods
from fmerge import modules as modules
from fmerge import search as search
from fmerge.fisher import estimate_fisher as estimate_fisher
from fmerge.merging.in_memory import merge as merge
from fmerge.merging.optimizer import MergeOptimizer as MergeOptimizer
from fmerge.store.params_file import load_params as load_params
from fmerge.trainer import FMergeTrainer as Trainer

__version__: str

__all__ = [
    "MergeOptimizer",
    "Trainer",
    "__version__",
    "data",
    "estimate_fisher",
    "load_params",
    "merge",
    "methods",
    "modules",
    "search",
]
