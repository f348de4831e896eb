"""Ask, tell, best: what every search over merging coefficients is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from typing_extensions import override

from fmerge.errors import UserError
from fmerge.search.belief import Belief, Pick
from fmerge.search.objective import Objective, shortfalls
from fmerge.search.pareto import non_dominated
from fmerge.search.space import SearchSpace
from fmerge.search.stopping import reason_to_stop
from fmerge.search.trial import Trial
from fmerge.system.recorded import Recorded


class Search(Recorded, ABC):
    """Proposes coefficients and is told what they scored. Deterministic for a seed.

    Attributes:
        method: The method of what ``ask`` proposed last, where it chooses among several.
        patience: After how many trials without an improvement it ends; never if None.
        batch: How many trials it proposes before it is told what any of them scored.
        pending: The proposals of the last batch that it has not been told of.
        late: Says why no time is left for another trial; empty while there is.
    """

    needs_errors = False
    """Whether it must be told the standard errors of the scores."""

    def __init__(self) -> None:
        self.space = SearchSpace(())
        self.bounds: dict[str, float] = {}
        self.objectives: tuple[str, ...] = ()
        self.history: list[Trial] = []
        self.goal = Objective()
        self.patience: int | None = None
        self.batch = 1
        self.pending: list[dict[str, float]] = []
        self.method = ""
        self.late: Callable[[], str] = lambda: ""

    def start(self, space: SearchSpace, objective: Objective | None = None) -> None:
        """Begins anew.

        Args:
            space: The coefficients to look for.
            objective: What is maximised: its parts where there are several objectives, and its
                bounds on the tasks' scores. One objective without bounds when left out.

        Raises:
            UserError: If the search cannot look through this space, or for these objectives.
        """  # noqa: DOC502 - subclasses raise it
        self.space = space
        self.objectives = () if objective is None else tuple(objective.parts)
        self.goal = objective or Objective()
        self.bounds = dict(self.goal.bounds)
        self.history, self.pending = [], []

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the coefficients."""
        return self.space.names

    @property
    @abstractmethod
    def budget(self) -> int:
        """How many trials the search will ask for, at most."""

    @property
    def single(self) -> str:
        """Why it can propose no batch; empty where it can."""
        return "each of its proposals depends on the scores of all before it"

    @property
    def initial(self) -> int:
        """How many of them come first whatever they score; patience begins after them."""
        return 0

    @property
    def ended(self) -> str:
        """Why it ends before its budget is spent; empty while it does not, or in a batch."""
        if len(self.history) >= self.budget or self.pending:
            return ""
        return self.late() or reason_to_stop(self)

    @abstractmethod
    def ask(self) -> dict[str, float]:
        """Proposes the next coefficients.

        Returns:
            λ within the space's bounds, by the names of the coefficients.
        """

    def ask_batch(self, count: int) -> list[dict[str, float]]:
        """Proposes trials without knowing what any of them scores.

        A larger batch begins with the proposals of a smaller one.

        Args:
            count: How many; 1 of a search that proposes no batches.

        Returns:
            Coefficients, in the order in which ``tell`` will be called.
        """
        assert count == 1
        return [self.ask()]

    def propose(self) -> list[dict[str, float]]:
        """Proposes the next batch, or what is left of the last one.

        Returns:
            Coefficients, in the order in which ``tell`` must be called.
        """
        if not self.pending:
            self.pending = self.ask_batch(min(self.batch, self.budget - len(self.history)))
        return list(self.pending)

    def tell(self, trial: Trial) -> None:
        """Records what a proposal scored.

        Args:
            trial: The finished trial, with the coefficients that ``ask`` gave.
        """
        self.history.append(trial)
        del self.pending[:1]

    def replay(self, trial: Trial) -> None:
        """Replays a trial of an interrupted run: the search then continues as it would have.

        Args:
            trial: The next finished trial, in order.

        Raises:
            UserError: If it has other objectives than this search.
        """
        if trial.status == "ok" and tuple(trial.objectives) != self.objectives:
            raise UserError(
                f"trials.jsonl: trial {trial.index} has the objectives "
                f"{', '.join(trial.objectives) or '(one)'}, but the search's are "
                f"{', '.join(self.objectives) or '(one)'}; mend it, or begin anew with "
                "--overwrite true"
            )
        self.tell(trial)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or a further trial is not worth its time."""
        return len(self.history) >= self.budget or bool(self.ended)

    def rank(self, trial: Trial) -> tuple[float, ...]:
        """Orders trials that have scores: those within the bounds first, then by the objective.

        Args:
            trial: A trial.

        Returns:
            Higher for better trials: minus the sum of its shortfalls, and its objective; where
            there are several, all of them in order.
        """
        # 0.0 where there is no shortfall, a float like all others
        missing = 0.0 - sum(shortfalls(trial.metrics, self.bounds).values())
        if trial.objectives:
            return missing, *trial.objectives.values()
        return missing, -math.inf if trial.objective is None else trial.objective

    def best(self) -> Trial:
        """Picks the best trial that was scored in full, the earliest among equals.

        Returns:
            The trial with the highest objective among those within the bounds; where none
            does, the one that falls short by least. Of several objectives the first decides, and
            where it is equal the next: it is a point of the front.

        Raises:
            ValueError: If no trial succeeded.
        """
        scored = [trial for trial in self.history if trial.status == "ok"]
        if not scored:
            raise ValueError(f"none of the {len(self.history)} trials gave a finite score")
        return max(scored, key=self._order)

    def _order(self, trial: Trial) -> tuple[float, ...]:
        return (*self.rank(trial), -trial.index)

    def runner_up(self) -> Trial | None:
        """Picks the best trial but one.

        Returns:
            The best of the trials with other coefficients than the best; None if there is none.
        """
        best = self.best()
        others = [
            trial
            for trial in self.history
            if trial.status == "ok"
            and (trial.coefficients, trial.method) != (best.coefficients, best.method)
        ]
        return max(others, key=self._order, default=None)

    def sensitivity(self) -> dict[str, float]:
        """Asks the search's model, where it has one, what the objective depends on.

        Returns:
            Coefficient to its part in the variance of the objective over all coefficients, alone
            or together with others (Sobol's total index); nothing without a model.
        """
        return {}

    def beliefs(self) -> dict[str, list[Belief]]:
        """Asks the search's model, where it has one, what it predicts along each coefficient.

        Returns:
            Coefficient to predictions over its bounds; nothing without a model.
        """
        return {}

    def front(self) -> list[Trial]:
        """Picks the non-dominated trials, where there are several objectives.

        Returns:
            The Pareto front of those within the bounds, or of those that fall short by least
            where none does, the best first; of equal trials the earliest.
        """
        scored = [trial for trial in self.history if trial.status == "ok" and trial.objectives]
        least = max((self.rank(trial)[0] for trial in scored), default=0.0)
        allowed = [trial for trial in scored if self.rank(trial)[0] == least]
        found = non_dominated([tuple(trial.objectives.values()) for trial in allowed])
        return sorted((allowed[i] for i in found), key=self.rank, reverse=True)

    def pick(self) -> Pick | None:
        """Asks the search's model of the scores, where it has one, after the last trial.

        Returns:
            The trial that the model predicts to be best; None without a model.
        """
        return None


class BatchSearch(Search):
    """A search that proposes batches: ``ask_batch`` is what a subclass defines."""

    @property
    @override
    def single(self) -> str:
        return ""

    @override
    def ask(self) -> dict[str, float]:
        return self.ask_batch(1)[0]

    @abstractmethod
    @override
    def ask_batch(self, count: int) -> list[dict[str, float]]: ...
