"""Searches over merging coefficients, behind one ask and tell."""

from fmerge.search.ax_search import AxSearch
from fmerge.search.base import Pick, Search, Trial
from fmerge.search.simple import Dirichlet, Fixed, Grid, RandomSearch, Sobol
from fmerge.search.unbeaten import unbeaten

__all__ = [
    "AxSearch",
    "Dirichlet",
    "Fixed",
    "Grid",
    "Pick",
    "RandomSearch",
    "Search",
    "Sobol",
    "Trial",
    "unbeaten",
]
