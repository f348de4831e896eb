"""The best of several methods: a portfolio that a search chooses from, no formula of its own."""

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from typing import final

from fmerge.errors import UserError, check_within, classes_of, known
from fmerge.methods.base import MergeMethod, Statistic
from fmerge.methods.calibrated import FeatCal
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.task_vectors import TaskArithmetic
from fmerge.params import Params

PORTFOLIO = (
    *("TaskArithmetic", "TIES", "IsoC", "TSVM", "FisherMerge"),
    *("RegMean", "RegMeanPP", "FeatCal"),
)
"""What is raced beside the plain average unless a portfolio is given."""


@final
class Auto(MergeMethod):
    """The method that scores best on validation, and its best coefficients.

    First every method of the portfolio is scored with its usual coefficients, the plain average
    before all others. Then a Bayesian search over the coefficients, in which the method is a
    categorical parameter, searches the best of them. Every trial names its method. At last the
    weights of the best merge are trained for some steps.

    Args:
        portfolio: Names or class paths of the methods, each with its defaults. When left out:
            task arithmetic, TIES, Iso-C, TSV-M and FeatCal from task arithmetic where there is a
            base, Fisher merging, RegMean and RegMean++.
        leaders: How many of them are searched after the race.
        steps: Steps that train all weights of the best merge at the end, body and heads, towards
            the experts' probabilities and, unless ``--labels none``, the labels; 0 for none.
            ``--polish_steps`` and what belongs to it take their place.
    """

    chooses = True

    def __init__(
        self, portfolio: list[str] | None = None, leaders: int = 2, steps: int = 60
    ) -> None:
        check_within("leaders", leaders, "[1, inf)")
        check_within("steps", steps, "[0, inf)")
        if portfolio is not None and not portfolio:
            raise UserError(
                "portfolio: is empty, so that there is nothing to choose from; name methods, such "
                "as [TaskArithmetic, TIES], or leave it out"
            )
        self.portfolio = portfolio
        self.leaders = leaders
        self.steps = steps
        self._base_given = True

    @cached_property
    def methods(self) -> Mapping[str, MergeMethod]:
        """The methods by name, the plain average first."""
        names = ["Average", *(PORTFOLIO if self.portfolio is None else self.portfolio)]
        made = {name.rpartition(".")[2]: _made(name) for name in names}
        if self.portfolio is None:
            made["FeatCal"] = FeatCal(TaskArithmetic())  # whose coefficients can be searched
        if self.portfolio is None and not self._base_given:
            made = {name: one for name, one in made.items() if not one.needs_base}
        return made

    def with_base(self, given: bool) -> None:
        """Says whether there is a base; without one, the default portfolio is smaller.

        Args:
            given: Whether there is.
        """
        self._base_given = given
        self.__dict__.pop("methods", None)

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Whether a method of the portfolio needs the base."""
        return any(one.needs_base for one in self.methods.values())

    @property
    def statistic(self) -> Statistic | None:  # type: ignore[override]
        """A statistic that a method of the portfolio needs: Fishers, if any needs them."""
        found = [one.statistic for one in self.methods.values() if one.statistic is not None]
        return min(found, default=None, key=lambda one: one != "fisher")

    def check_count(self, count: int) -> None:
        """Checks that every method takes that many experts.

        Args:
            count: M.
        """
        for one in self.methods.values():
            one.check_count(count)

    def compute(self, inputs: MergeInputs, out: Params | None = None) -> Params:
        """Refuses: scores choose the method.

        Args:
            inputs: The inputs.
            out: See ``merge``.

        Raises:
            ValueError: Always.
        """
        raise ValueError("Auto chooses a method by scores, which a formula alone does not have")


def _made(name: str) -> MergeMethod:
    methods = import_module("fmerge.methods")
    module, _, short = name.rpartition(".")
    try:
        found = getattr(import_module(module or "fmerge.methods"), short, None)
    except ImportError as error:
        raise UserError(f"portfolio: {name} cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, MergeMethod) and not found.chooses):
        names = known(classes_of(methods, MergeMethod))
        raise UserError(f"portfolio: unknown method '{name}'; known: {names}")
    try:
        return found()
    except TypeError as error:
        raise UserError(
            f"portfolio: {name} takes arguments; derive a class with defaults and name its path"
        ) from error
