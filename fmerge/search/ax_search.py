"""Bayesian optimisation of the coefficients, after initial points and before a local polish."""

import logging
from typing import Literal

from typing_extensions import override

from fmerge.errors import UserError
from fmerge.search.acquisitions import Acquisition
from fmerge.search.ax_client import AxClient, Value, quiet
from fmerge.search.base import BatchSearch
from fmerge.search.belief import Belief, Pick
from fmerge.search.charts import Chart, Linear, LogRatios
from fmerge.search.coordinate_search import coordinate_point
from fmerge.search.initial_points import initial_points
from fmerge.search.objective import Objective, Partial
from fmerge.search.simple import scaled, sobol_points
from fmerge.search.space import SearchSpace
from fmerge.search.trial import Trial

Noise = Literal["infer", "binomial", "none"]
Coordinates = Literal["ratios", "linear"]

_LOG = logging.getLogger(__name__)

_STEPS = 25
"""Values of a coefficient that the model is asked about."""


class AxSearch(BatchSearch):
    """Bayesian optimisation with Ax over the box of coefficients, [0, 1]ᴹ unless bounds are given.

    First the points that any user would try, then quasi-random (Sobol) points, then a Gaussian
    process and an acquisition function. The settings of Lee et al. (NAACL 2025): 10 + 50 trials
    without ``starts``, EI with xi 0.01 or UCB with kappa 2.576.

    The noise is inferred unless it is given. All trials are scored on one and the same validation
    set, whose choice moves them together; the binomial error, which would be right for a fresh
    draw of examples each time, overstates by how much two trials differ for no reason.

    Of several objectives (``--optimizer.objective [mean, worst]``) it looks for the Pareto front:
    ``nei`` then improves on a Chebyshev scalarization of them whose weights change from trial to
    trial (ParEGO, Knowles 2006), for any number of objectives.

    Args:
        trials: Trials in all: the initial ones, the model's and those of the polish.
        initial_trials: Trials before the model takes over: the starts, all of which are tried,
            and then quasi-random points up to this number; 10 unless given, or half of the trials
            where there are fewer.
        acquisition: ``nei``: noisy expected improvement; ``ei``: expected improvement over the
            best score plus ``xi``; ``ucb``: upper confidence bound, mean + ``kappa`` · deviation.
        xi: Improvement that ``ei`` asks for, in units of the objective.
        kappa: Exploration of ``ucb``, in standard deviations.
        seed: Seed of the points and of the optimisation.
        starts: Try first 1/M for each of the M experts (task arithmetic's plain average), then
            0.3, 0.5 and 1 for each, then each expert alone; no merge twice.
        noise: Standard error of a score that the model is told. ``infer``: none, it estimates
            one for all trials; ``binomial``: that of an accuracy on as many examples; ``none``:
            zero. Of a trial that racing stopped, ``none`` is what the missing examples leave
            open, and ``binomial`` has that added; ``infer`` takes its estimate as a score.
        polish: So many of the trials come last and go from the best one along one coefficient
            at a time, by a step of 0.1 of its range that is halved when no direction is better.
        coordinates: What is searched where only the ratios of coefficients matter and no bounds are
            given. ``ratios``: their logarithms, up to a factor of a thousand, and among the first
            trials weights that balance the experts' Fishers or Grams; ``linear``: the box of
            coefficients, as in the papers and as for all other methods.
    """

    def __init__(
        self,
        trials: int = 60,
        initial_trials: int | None = None,
        acquisition: Acquisition = "nei",
        xi: float = 0.01,
        kappa: float = 2.576,
        seed: int = 0,
        starts: bool = True,
        noise: Noise = "infer",
        polish: int = 0,
        coordinates: Coordinates = "ratios",
    ) -> None:
        super().__init__()
        if initial_trials is None:
            initial_trials = 10 if trials >= 10 else (trials + 1) // 2
        if not 1 <= initial_trials <= trials:
            raise UserError(
                f"AxSearch: initial_trials is {initial_trials} and trials is {trials}, "
                "but 1 <= initial_trials <= trials is needed"
            )
        if not 0 <= polish <= trials - initial_trials:
            raise UserError(
                f"AxSearch: polish is {polish}, but of {trials} trials {initial_trials} are "
                f"initial; give 0 to {trials - initial_trials}"
            )
        self.trials = trials
        self.initial_trials = initial_trials
        self.acquisition: Acquisition = acquisition
        self.xi = xi
        self.kappa = kappa
        self.seed = seed
        self.starts = starts
        self.noise: Noise = noise
        self.polish = polish
        self.coordinates: Coordinates = coordinates
        self.needs_errors = noise == "binomial"
        self._made: AxClient | None = None
        self._starts: list[dict[str, float]] = []
        self._chart: Chart = Linear(self.space)
        self._begun: list[int] = []  # Ax's numbers of the trials that it has not been told of

    @property
    @override
    def budget(self) -> int:
        return self.trials

    @property
    @override
    def initial(self) -> int:
        return max(self.initial_trials, len(self._starts))

    @override
    def start(self, space: SearchSpace, objective: Objective | None = None) -> None:
        super().start(space, objective)
        self._check_objectives()
        ratios = self.coordinates == "ratios" and space.has_ratios
        self._chart = LogRatios(space) if ratios else Linear(space)
        self._starts = initial_points(space, balanced=ratios) if self.starts else []
        self._made, self._begun = None, []  # Ax takes names and bounds when it begins

    def _check_objectives(self) -> None:
        found = self.objectives
        what = f"but there are {len(found)} ({', '.join(found)})"
        if found and self.acquisition != "nei":
            raise UserError(
                f"AxSearch: acquisition '{self.acquisition}' is of one objective, {what}; use "
                "nei, or name one --optimizer.objective"
            )
        if found and self.polish:
            raise UserError(
                f"AxSearch: polish goes up along one objective, {what}; give polish 0, or name "
                "one --optimizer.objective"
            )

    @override
    def ask_batch(self, count: int) -> list[dict[str, float]]:
        index, scored = len(self.history), [t.index for t in self.history if t.status == "ok"]
        # the model needs one score to start from: more Sobol points until there is one
        initial = max(0, min(count, self.initial - index)) if scored else count
        with quiet():
            found = [self._attach(self._initial(index + i)) for i in range(initial)]
            if initial == count:
                return found
            begin = max(self.trials - self.polish, scored[0] + 1)
            if self.polish and index >= begin:
                chart = self._chart
                point = coordinate_point(self.history, begin, self.rank, chart.box, chart.point)
                if point is not None:
                    return [self._attach(chart.coefficients(point))]
            begun = self._client.propose(count - initial)
        self._begun += [number for number, _ in begun]
        return found + [self._chart.coefficients(point) for _, point in begun]

    @property
    @override
    def single(self) -> str:
        return "its polish goes from one trial to the next" if self.polish else ""

    @override
    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        number = self._begun.pop(0)
        with quiet():
            # abandoned, not failed: Ax proposes a failed point again
            if trial.status == "failed":
                self._client.abandon(number)
                return
            unseen = trial.partial or Partial(0, 0, 0.0)
            self._client.complete(
                number,
                self._objectives_of(trial, unseen.error),
                {
                    task: self._value(
                        trial.metrics[task], trial.errors.get(task), unseen.errors.get(task, 0.0)
                    )
                    for task in self.bounds
                },
            )

    @override
    def replay(self, trial: Trial) -> None:
        if trial.index >= len(self._starts) and not self._chart.made(trial.coefficients):
            raise UserError(
                f"trials.jsonl: trial {trial.index} is of a search over a box of coefficients, but "
                "this one is over their ratios; add --optimizer.search.coordinates linear, or "
                "begin anew with --overwrite true"
            )
        # attached in order, Ax's state is that of the interrupted run; its own snapshot is not
        with quiet():
            self._attach(dict(trial.coefficients))
        super().replay(trial)

    @override
    def pick(self) -> Pick | None:
        scored = [trial for trial in self.history if trial.status == "ok"]
        if not self._has_model:
            return None
        try:
            with quiet():
                points = [self._chart.point(trial.coefficients) for trial in scored]
                predicted = self._client.predict(points)
        except Exception as failure:  # a line of the report: the search must be saved
            _LOG.warning("the search's model has no pick: %s", failure)
            return None
        ranked = zip(scored, predicted, strict=True)
        trial, (mean, error, _) = max(ranked, key=lambda one: (-one[1][2], one[1][0]))
        return Pick(trial, mean, error)

    @override
    def sensitivity(self) -> dict[str, float]:
        # a ratio is of several coefficients, none of which can be told its share
        if not self._has_model or not isinstance(self._chart, Linear):
            return {}
        try:
            with quiet():
                return self._client.sensitivity(self.seed)
        except Exception as failure:  # a table of the report: the search must be saved
            _LOG.warning("the search's model tells no sensitivity: %s", failure)
            return {}

    @override
    def beliefs(self) -> dict[str, list[Belief]]:
        if not self._has_model or not isinstance(self._chart, Linear):
            return {}
        best, found = self.best().coefficients, {}
        for name, (low, high) in self._chart.box.items():
            steps = [low + (high - low) * i / (_STEPS - 1) for i in range(_STEPS)]
            found[name] = [{**best, name: step} for step in steps]
        try:
            with quiet():
                predicted = self._client.predict([one for line in found.values() for one in line])
        except Exception as failure:  # a picture of the report: the search must be saved
            _LOG.warning("the search's model predicts no curves: %s", failure)
            return {}
        told = iter(predicted)
        return {
            name: [Belief(point[name], *next(told)[:2]) for point in line]
            for name, line in found.items()
        }

    @property
    def _has_model(self) -> bool:
        scored = any(trial.status == "ok" for trial in self.history)
        return scored and len(self.history) > self.initial

    @property
    def _client(self) -> AxClient:
        if self._made is None:
            options = {"ei": {"xi": self.xi}, "ucb": {"beta": self.kappa**2}, "nei": {}}
            chosen = options[self.acquisition]
            if self.objectives:
                chosen = {"objectives": len(self.objectives), "seed": self.seed}
            self._made = AxClient(
                self._chart,
                self.bounds,
                self.acquisition,
                chosen,
                seed=self.seed,
                objectives=self.objectives,
            )
        return self._made

    def _initial(self, index: int) -> dict[str, float]:
        if index < len(self._starts):
            return self._starts[index]
        index -= len(self._starts)
        box = self._chart.box
        point = scaled(sobol_points(len(box), index + 1, self.seed)[index], list(box.values()))
        return self._chart.coefficients(dict(zip(box, point, strict=True)))

    def _attach(self, coefficients: dict[str, float]) -> dict[str, float]:
        self._begun.append(self._client.attach(self._chart.point(coefficients)))
        return coefficients

    def _objectives_of(self, trial: Trial, unseen: float) -> Value | dict[str, Value]:
        if not self.objectives:
            return self._value(trial.objective or 0.0, trial.error, unseen)
        errors = trial.objective_errors
        return {
            name: self._value(trial.objectives[name], errors.get(name), unseen)
            for name in self.objectives
        }

    def _value(self, mean: float, error: float | None, unseen: float) -> Value:
        if self.noise == "infer":
            return mean
        if self.noise == "none":
            return mean, unseen
        if error is None:
            raise UserError("AxSearch: noise 'binomial' needs the standard errors of the scores")
        return mean, error
