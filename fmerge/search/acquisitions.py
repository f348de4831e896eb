"""The acquisition functions of BoTorch that Ax is given; BoTorch is imported lazily."""

from functools import cache
from typing import Any, Literal

Acquisition = Literal["nei", "ei", "ucb"]


def acquisition_class(acquisition: Acquisition, objectives: int = 0) -> type:
    """Finds the class of an acquisition function.

    Args:
        acquisition: Its name.
        objectives: How many objectives there are, if several; they have a function of their own.

    Returns:
        A class whose inputs BoTorch knows how to make.
    """
    # the q-versions only: the analytic ones crash once a trial was abandoned
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.acquisition.monte_carlo import qUpperConfidenceBound

    if objectives:
        return _improvement_of_several()
    found: type = {
        "ei": _expected_improvement_over_xi(),
        "ucb": qUpperConfidenceBound,
        "nei": qLogNoisyExpectedImprovement,
    }[acquisition]
    return found


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


@cache
def _improvement_of_several() -> type:
    """ParEGO with other weights in every trial; made once, as BoTorch registers its inputs.

    Knowles 2006: noisy expected improvement of one objective, the Chebyshev scalarization
    minᵢ wᵢyᵢ of several, each brought to [0, 1], with w from the simplex. Ax seeds every suggestion
    alike, so that BoTorch's own draw of w would be the same each time.

    Returns:
        The class.
    """
    from botorch.acquisition.input_constructors import (
        acqf_input_constructor,
        construct_inputs_qLogNParEGO,
    )
    from botorch.acquisition.multi_objective.parego import qLogNParEGO
    from botorch.utils.sampling import sample_simplex

    class ImprovementOfSeveral(qLogNParEGO):  # type: ignore[misc]
        """Log noisy expected improvement of a scalarization whose weights follow the trials."""

    @acqf_input_constructor(ImprovementOfSeveral)  # type: ignore[untyped-decorator]
    def _inputs(
        model: Any,
        training_data: Any,
        objective: Any = None,
        X_pending: Any = None,
        sampler: Any = None,
        constraints: Any = None,
        objectives: int = 2,
        seed: int = 0,
    ) -> dict[str, Any]:
        one = training_data if hasattr(training_data, "X") else next(iter(training_data.values()))
        # the next of a low-discrepancy sequence: the log of trials is all it depends on
        weights = sample_simplex(objectives, len(one.X), qmc=True, seed=seed, dtype=one.X.dtype)
        inputs: dict[str, Any] = construct_inputs_qLogNParEGO(
            model=model,
            training_data=training_data,
            objective=objective,
            X_pending=X_pending,
            sampler=sampler,
            constraints=constraints,
            scalarization_weights=weights[-1],
        )
        return inputs

    return ImprovementOfSeveral
