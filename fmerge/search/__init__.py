"""Searches over merging coefficients, behind one ask and tell."""

from fmerge.search.ax_search import AxSearch
from fmerge.search.base import Pick, Search, Trial, non_dominated_trials
from fmerge.search.simple import Dirichlet, Fixed, Grid, RandomSearch, Sobol
from fmerge.search.space import SearchSpace

__all__ = [
    "AxSearch",
    "Dirichlet",
    "Fixed",
    "Grid",
    "Pick",
    "RandomSearch",
    "Search",
    "SearchSpace",
    "Sobol",
    "Trial",
    "non_dominated_trials",
]
