"""Searches over merging coefficients, behind one ask and tell.

Examples:
    >>> from fmerge.search import Grid, SearchSpace, Trial
    >>> search = Grid(points=3)
    >>> search.start(SearchSpace(["a", "b"]))
    >>> while not search.finished:
    ...     coefficients = search.ask()
    ...     score = -((coefficients["a"] - 0.4) ** 2)
    ...     search.tell(Trial(len(search.history), coefficients, score))
    >>> search.best().coefficients
    {'a': 0.5, 'b': 0.5}
"""

from fmerge.search.ax_search import AxSearch
from fmerge.search.base import Search
from fmerge.search.belief import Belief, Pick
from fmerge.search.pareto import non_dominated_trials
from fmerge.search.simple import Dirichlet, Fixed, Grid, RandomSearch, Sobol
from fmerge.search.space import SearchSpace
from fmerge.search.trial import Trial

__all__ = [
    "AxSearch",
    "Belief",
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
