"""A search over methods and their coefficients: a race, then Ax with the method as a choice."""

from collections.abc import Mapping
from typing import final

from typing_extensions import override

from fmerge.errors import UserError
from fmerge.search.ax_client import AxClient, quiet
from fmerge.search.base import Search
from fmerge.search.charts import Chart, Linear
from fmerge.search.objective import Objective
from fmerge.search.simple import scaled, sobol_points
from fmerge.search.space import SearchSpace
from fmerge.search.trial import Trial


@final
class PortfolioSearch(Search):
    """Races methods with their usual coefficients, then searches the coefficients of the best.

    Args:
        usual: Method to the λ of each expert that it is raced with; 1/M where None.
        searched: The methods that have coefficients.
        leaders: How many of these are searched.
        trials: Trials in all.
        seed: Seed of the points and of the optimisation.
        data_free: The methods that look at no examples.
    """

    def __init__(
        self,
        usual: Mapping[str, float | None],
        searched: frozenset[str],
        leaders: int = 2,
        trials: int = 12,
        seed: int = 0,
        data_free: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        if trials < 1:
            raise UserError(f"Auto: trials is {trials}, but at least 1 is needed")
        self.usual = usual
        self.searched = searched
        self.leaders = leaders
        self.trials = trials
        self.seed = seed
        self.data_free = data_free
        self._made: AxClient | None = None
        self._chart: Chart = Linear(self.space)
        self._pending: int | None = None

    @property
    @override
    def budget(self) -> int:
        return self.trials

    @property
    @override
    def initial(self) -> int:
        return len(self.usual) + 2 * self.leaders

    @override
    def start(self, space: SearchSpace, objective: Objective | None = None) -> None:
        super().start(space, objective)
        if self.objectives:
            raise UserError(
                f"Auto: is of one objective, but there are {len(self.objectives)}; name one "
                "--optimizer.objective, or one --method"
            )
        self._made, self._chart = None, Linear(space)

    @override
    def ask(self) -> dict[str, float]:
        index = len(self.history)
        if index < len(self.usual):
            self.method = list(self.usual)[index]
            return self._usual(self.method)
        leaders = self._leaders()
        with quiet():
            if index < self.initial or not leaders:
                names = leaders or sorted(self.searched) or list(self.usual)
                number = index - len(self.usual)
                self.method = names[number % len(names)]
                return self._attach(self._spread(number))
            ((self._pending, point),) = self._client.propose()
            self.method = self._client.choice
        return point

    @override
    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        if trial.method not in self._leaders() or len(self.history) <= len(self.usual):
            return
        assert self._pending is not None
        with quiet():
            if trial.objective is None:
                self._client.abandon(self._pending)
                return
            self._client.complete(self._pending, trial.objective, trial.metrics)

    @override
    def replay(self, trial: Trial) -> None:
        self.method = trial.method
        if self.method not in self.usual:
            raise UserError(
                f"trials.jsonl: trial {trial.index} is of the method '{trial.method}', but that is "
                "not in the portfolio; begin anew with --overwrite true"
            )
        if len(self.history) >= len(self.usual) and trial.method in self._leaders():
            with quiet():
                self._attach(dict(trial.coefficients))
        super().replay(trial)

    def best_data_free(self) -> Trial | None:
        """Finds the best trial of a method that looks at no examples.

        Returns:
            The earliest of equal ones; None if there is none.
        """
        found = [one for one in self.history if one.status == "ok" and one.method in self.data_free]
        return max(found, key=lambda trial: (self.rank(trial), -trial.index), default=None)

    def _usual(self, method: str) -> dict[str, float]:
        value = self.usual[method]
        return dict.fromkeys(self.names, 1 / len(self.space.experts) if value is None else value)

    def _leaders(self) -> list[str]:
        """The methods that are searched after the race, its best first."""
        race = [t for t in self.history[: len(self.usual)] if t.status == "ok"]
        able = [trial for trial in race if trial.method in self.searched]
        best = sorted(able, key=lambda trial: (self.rank(trial), -trial.index), reverse=True)
        return [trial.method for trial in best[: self.leaders]]

    def _spread(self, number: int) -> dict[str, float]:
        box = self._chart.box
        point = scaled(sobol_points(len(box), number + 1, self.seed)[number], list(box.values()))
        return dict(zip(box, point, strict=True))

    def _attach(self, coefficients: dict[str, float]) -> dict[str, float]:
        if self.method in self._leaders():
            self._pending = self._client.attach(coefficients, self.method)
        return coefficients

    @property
    def _client(self) -> AxClient:
        if self._made is None:
            leaders = self._leaders()
            self._made = AxClient(
                self._chart, self.bounds, "nei", {}, seed=self.seed, choices=leaders
            )
            for trial in self.history[: len(self.usual)]:  # of the race
                if trial.method in leaders and trial.objective is not None:
                    number = self._made.attach(trial.coefficients, trial.method)
                    self._made.complete(number, trial.objective, trial.metrics)
        return self._made
