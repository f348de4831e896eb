"""Searches over merging coefficients, behind one ask and tell."""

from fmerge.search.base import Search, Trial
from fmerge.search.bayes import AxSearch
from fmerge.search.simple import Dirichlet, Fixed, Grid

__all__ = ["AxSearch", "Dirichlet", "Fixed", "Grid", "Search", "Trial"]
