"""The client of Ax: the only file that imports it, lazily."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fmerge.search.acquisitions import Acquisition, acquisition_class
from fmerge.search.charts import Chart

Value = float | tuple[float, float]
"""A mean whose noise the model infers, or (mean, standard error)."""

_METHOD = "method"

_SENSITIVITY_POINTS = 2000
"""Known to a few hundredths by them, in one or two seconds."""


class AxClient:
    """A box, objectives and bounded metrics, under names that Ax can read.

    Ax reads a minus in a name as a subtraction, so that it gets names of its own: c0, c1, … for
    the numbers of a point, t0, t1, … for the bounded tasks, o0, o1, … for several objectives.

    Args:
        chart: The box, and how many digits its numbers have.
        bounds: Least score by task.
        acquisition: The acquisition function.
        options: Its options.
        seed: Seed of the optimisation.
        objectives: Names of the objectives, where there are several.
        choices: The methods, one of which is a parameter of every trial, if there are two or more.
    """

    def __init__(
        self,
        chart: Chart,
        bounds: Mapping[str, float],
        acquisition: Acquisition,
        options: Mapping[str, float],
        seed: int,
        objectives: Sequence[str] = (),
        choices: Sequence[str] = (),
    ) -> None:
        from ax.api.client import Client
        from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

        self._parameters = {name: f"c{i}" for i, name in enumerate(chart.box)}
        self._bounds = {f"t{i}": bound for i, bound in enumerate(bounds.values())}
        self._tasks = {task: f"t{i}" for i, task in enumerate(bounds)}
        self._objectives = {name: f"o{i}" for i, name in enumerate(objectives)}
        self._methods = {f"m{i}": name for i, name in enumerate(choices)}
        self.choice = choices[0] if choices else ""
        """The method of the last proposal."""
        self._first = "o0" if objectives else "objective"
        self._client = Client(random_seed=seed)
        self._client.configure_experiment(
            name="fmerge",
            parameters=[
                RangeParameterConfig(name=own, bounds=chart.box[name], parameter_type="float")
                for name, own in self._parameters.items()
            ]
            + [
                ChoiceParameterConfig(
                    name=_METHOD, values=list(self._methods), parameter_type="str", is_ordered=False
                )
                for _ in choices[1:2]  # a choice of one is none
            ],
        )
        if chart.digits is not None:
            for parameter in self._client._experiment.search_space.parameters.values():
                parameter.set_digits(chart.digits)
        # absolute bounds: Ax's relative ones know one baseline alone
        bounded = [f"{metric} >= {bound:.12f}" for metric, bound in self._bounds.items()]
        self._client.configure_optimization(
            objective=", ".join(self._objectives.values()) or "objective",
            outcome_constraints=bounded or None,
        )
        chosen = acquisition_class(acquisition, len(objectives))
        self._strategy = _generation_strategy(chosen, options)
        self._client.set_generation_strategy(self._strategy)

    def attach(self, point: Mapping[str, float], choice: str = "") -> int:
        """Begins a trial at a point of ours.

        Args:
            point: By name.
            choice: Its method, where there are several.

        Returns:
            Ax's number of the trial.
        """
        own: dict[str, Any] = {self._parameters[name]: value for name, value in point.items()}
        if len(self._methods) > 1:
            own[_METHOD] = next(key for key, name in self._methods.items() if name == choice)
        trial: int = self._client.attach_trial(own)
        return trial

    def propose(self, count: int = 1) -> list[tuple[int, dict[str, float]]]:
        """Begins trials where the acquisition function is highest, given all that have begun.

        Args:
            count: How many; more of them begin with the same ones.

        Returns:
            Ax's number of each trial, and the point by name.
        """
        found = self._client.get_next_trials(max_trials=count)
        if len(self._methods) > 1:
            self.choice = self._methods[str(next(iter(found.values()))[_METHOD])]
        return [
            (trial, {name: float(point[own]) for name, own in self._parameters.items()})
            for trial, point in found.items()
        ]

    def complete(
        self,
        trial: int,
        objective: Value | Mapping[str, Value],
        metrics: Mapping[str, Value],
    ) -> None:
        """Ends a trial that succeeded.

        Args:
            trial: Ax's number of it.
            objective: What it scored; by name, where there are several objectives.
            metrics: Score by task. Only those that are bounded are passed on: Ax would fit a
                model of every metric that it is told.
        """
        bounded = {own: metrics[task] for task, own in self._tasks.items()}
        if isinstance(objective, Mapping):
            scored = {own: objective[name] for name, own in self._objectives.items()}
        else:
            scored = {self._first: objective}
        self._client.complete_trial(trial, raw_data={**scored, **bounded})

    def abandon(self, trial: int) -> None:
        """Ends a trial that failed.

        Args:
            trial: Ax's number of it.
        """
        # a trial marked failed would be proposed again, to the last digit
        self._client.mark_trial_abandoned(trial)

    def predict(self, points: Sequence[Mapping[str, float]]) -> list[tuple[float, float, float]]:
        """Fits the model to all finished trials and asks it about points.

        Args:
            points: Numbers by name.

        Returns:
            Of each point the predicted objective, the first of several, its standard error, and
            the sum of the predicted shortfalls below the bounds.
        """
        # not get_best_parameterization: it gives the variance for the standard error, and the
        # observed best where cross-validation is poor
        self._strategy.fit(experiment=self._client._experiment)
        predictions = self._client.predict([
            {self._parameters[name]: value for name, value in point.items()} for point in points
        ])
        return [
            (
                *one[self._first],
                sum(max(0.0, bound - one[own][0]) for own, bound in self._bounds.items()),
            )
            for one in predictions
        ]

    def sensitivity(self, seed: int) -> dict[str, float]:
        """Fits the model to all finished trials and asks it what the objective depends on.

        Args:
            seed: Seed of the points that it is asked at.

        Returns:
            Sobol's total index of each coefficient, by name.
        """
        import torch
        from ax.utils.sensitivity.sobol_measures import ax_parameter_sens

        self._strategy.fit(experiment=self._client._experiment)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # not input_qmc: its two sets of points are related, and the indices wrong by half
            found = ax_parameter_sens(
                self._strategy.adapter,
                ["objective"],
                order="total",
                signed=False,
                num_mc_samples=_SENSITIVITY_POINTS,
            )["objective"]
        return {name: max(0.0, float(found[own])) for name, own in self._parameters.items()}


def _generation_strategy(acquisition: type, options: Mapping[str, float]) -> Any:
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
            "botorch_acqf_options": dict(options),
            # a model for each outcome: Standardize is for one
            "surrogate_spec": SurrogateSpec(model_configs=[model], allow_batched_models=False),
            # Ax's own transforms of the objective would change the units that xi is in
            "transforms": MBM_X_trans,
            "fit_tracking_metrics": False,
        },
    )
    node = GenerationNode(name="BO", should_deduplicate=True, generator_specs=[spec])
    return GenerationStrategy(name="BO", nodes=[node])


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Ax's line per trial and BoTorch's numerical warnings off the terminal.

    Yields:
        Nothing.
    """
    from ax.utils.common.logger import set_ax_logger_levels

    set_ax_logger_levels(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
