"""Bayesian optimisation of the coefficients with Ax: the only file that imports it, lazily."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from typing_extensions import override

from fmerge.errors import UserError
from fmerge.search.base import Search, Trial

Acquisition = Literal["nei", "ei", "ucb"]


class AxSearch(Search):
    """Bayesian optimisation with Ax over the box [0, 1]ᴹ, one coefficient per expert.

    First quasi-random (Sobol) points, then a Gaussian process and an acquisition function. The
    settings of Lee et al. (NAACL 2025): 10 + 50 trials, EI with xi 0.01 or UCB with kappa 2.576.

    Args:
        trials: Trials in all, the initial ones included.
        initial_trials: Quasi-random points before the model takes over.
        acquisition: ``nei``: noisy expected improvement; ``ei``: expected improvement over the
            best score plus ``xi``; ``ucb``: upper confidence bound, mean + ``kappa`` · deviation.
        xi: Improvement that ``ei`` asks for, in units of the objective.
        kappa: Exploration of ``ucb``, in standard deviations.
        seed: Seed of the points and of the optimisation.
    """

    def __init__(
        self,
        trials: int = 60,
        initial_trials: int = 10,
        acquisition: Acquisition = "nei",
        xi: float = 0.01,
        kappa: float = 2.576,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= initial_trials <= trials:
            raise UserError(
                f"AxSearch: initial_trials is {initial_trials} and trials is {trials}, "
                "but 1 <= initial_trials <= trials is needed"
            )
        self.trials = trials
        self.initial_trials = initial_trials
        self.acquisition: Acquisition = acquisition
        self.xi = xi
        self.kappa = kappa
        self.seed = seed
        self._client: Any = None
        self._initial: list[dict[str, float]] = []
        self._pending: int | None = None

    @property
    @override
    def budget(self) -> int:
        return self.trials

    @override
    def start(self, names: Sequence[str]) -> None:
        super().start(names)
        # Ax reads a minus in a name as a subtraction: its own names for the coefficients
        self._parameters = {name: f"c{i}" for i, name in enumerate(self.names)}
        self._initial = self._sobol(self.initial_trials)
        with _quiet():
            self._client = self._new_client()

    @override
    def ask(self) -> dict[str, float]:
        with _quiet():
            if len(self.history) < len(self._initial) or not self._scored:
                # the model needs one score to start from: more Sobol points until there is one
                return self._attach(self._quasi_random(len(self.history)))
            ((self._pending, point),) = self._client.get_next_trials(max_trials=1).items()
        return {name: float(point[self._parameters[name]]) for name in self.names}

    @override
    def tell(self, trial: Trial) -> None:
        super().tell(trial)
        with _quiet():
            if trial.status == "ok":
                self._client.complete_trial(
                    self._pending, raw_data={"objective": float(trial.objective or 0.0)}
                )
            else:
                # a trial marked failed would be proposed again, to the last digit
                self._client.mark_trial_abandoned(self._pending)

    @override
    def replay(self, trial: Trial) -> None:
        with _quiet():
            self._attach(dict(trial.coefficients))
        self.tell(trial)

    @property
    def _scored(self) -> bool:
        return any(trial.status == "ok" for trial in self.history)

    def _quasi_random(self, index: int) -> dict[str, float]:
        if index < len(self._initial):
            return self._initial[index]
        return self._sobol(index + 1)[index]

    def _sobol(self, count: int) -> list[dict[str, float]]:
        engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
            len(self.names), scramble=True, seed=self.seed
        )
        points = engine.draw(count, dtype=torch.float64).tolist()
        return [dict(zip(self.names, point, strict=True)) for point in points]

    def _attach(self, coefficients: dict[str, float]) -> dict[str, float]:
        self._pending = self._client.attach_trial({
            self._parameters[name]: value for name, value in coefficients.items()
        })
        return coefficients

    def _new_client(self) -> Any:
        from ax.api.client import Client
        from ax.api.configs import RangeParameterConfig

        client = Client(random_seed=self.seed)
        client.configure_experiment(
            name="fmerge",
            parameters=[
                RangeParameterConfig(name=name, bounds=(0.0, 1.0), parameter_type="float")
                for name in self._parameters.values()
            ],
        )
        client.configure_optimization(objective="objective")
        client.set_generation_strategy(_generation_strategy(*self._acquisition_class()))
        return client

    def _acquisition_class(self) -> tuple[type, dict[str, float]]:
        # the q-versions only: the analytic ones crash once a trial was abandoned
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.acquisition.monte_carlo import qUpperConfidenceBound

        if self.acquisition == "ei":
            return _expected_improvement_over_xi(), {"xi": self.xi}
        if self.acquisition == "ucb":
            return qUpperConfidenceBound, {"beta": self.kappa**2}
        return qLogNoisyExpectedImprovement, {}


def _generation_strategy(acquisition: type, options: dict[str, float]) -> Any:
    from ax.adapter.registry import Generators, MBM_X_trans
    from ax.generation_strategy.generation_strategy import GenerationNode, GenerationStrategy
    from ax.generation_strategy.generator_spec import GeneratorSpec
    from ax.generators.torch.botorch_modular.surrogate import ModelConfig, SurrogateSpec
    from botorch.models.transforms.outcome import Standardize

    model = ModelConfig(
        outcome_transform_classes=[Standardize], outcome_transform_options={"Standardize": {"m": 1}}
    )
    spec = GeneratorSpec(
        generator_enum=Generators.BOTORCH_MODULAR,
        generator_kwargs={
            "botorch_acqf_class": acquisition,
            "botorch_acqf_options": options,
            "surrogate_spec": SurrogateSpec(model_configs=[model]),
            # Ax's own transforms of the objective would change the units that xi is in
            "transforms": MBM_X_trans,
            "fit_tracking_metrics": False,
        },
    )
    node = GenerationNode(name="BO", should_deduplicate=True, generator_specs=[spec])
    return GenerationStrategy(name="BO", nodes=[node])


@cache
def _expected_improvement_over_xi() -> type:
    """Log expected improvement over max(y) + xi; made once, as BoTorch registers its inputs."""
    from botorch.acquisition.input_constructors import (
        acqf_input_constructor,
        construct_inputs_qLogEI,
    )
    from botorch.acquisition.logei import qLogExpectedImprovement

    class ExpectedImprovementOverXi(qLogExpectedImprovement):  # type: ignore[misc]
        """Log expected improvement over the best observed objective plus xi."""

    @acqf_input_constructor(ExpectedImprovementOverXi)  # type: ignore[untyped-decorator]
    def _inputs(
        model: Any,
        training_data: Any,
        objective: Any = None,
        posterior_transform: Any = None,
        X_pending: Any = None,
        sampler: Any = None,
        best_f: Any = None,
        constraints: Any = None,
        xi: float = 0.0,
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = construct_inputs_qLogEI(
            model=model,
            training_data=training_data,
            objective=objective,
            posterior_transform=posterior_transform,
            X_pending=X_pending,
            sampler=sampler,
            best_f=best_f,
            constraints=constraints,
        )
        return inputs | {"best_f": inputs["best_f"] + xi}

    return ExpectedImprovementOverXi


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ax's line per trial and BoTorch's numerical warnings off the terminal."""
    from ax.utils.common.logger import set_ax_logger_levels

    set_ax_logger_levels(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
