"""A merge of dictionaries of tensors in memory: no data, no search, no Trainer."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fmerge import methods
from fmerge.errors import UserError, known, object_of
from fmerge.merging.buffers import FROM_THE_FIRST
from fmerge.methods import MergeMethod
from fmerge.methods.base import STATISTIC_NAMES
from fmerge.methods.signs import check_signs
from fmerge.params import Params, check_finite, check_same_layout
from fmerge.search.simple import check_coefficients

_Value = TypeVar("_Value")


def merge(
    experts: Sequence[Params] | Mapping[str, Params],
    method: MergeMethod | str,
    coefficients: Sequence[float] | Mapping[str, float] | None = None,
    base: Params | None = None,
    statistics: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | None = None,
) -> Params:
    """Merges dictionaries of tensors.

    Floating-point tensors are merged; those that are equal in all inputs stay exactly as they are.
    Others, such as position ids, must be equal, but ``num_batches_tracked`` is the first expert's.

    Args:
        experts: θₘ: M dictionaries of one layout, in a list or by the experts' names.
        method: The formula, or the name of its class, which is then made with its defaults.
        coefficients: λₘ, in a list or by the experts' names; 1/M each when left out.
        base: θ₀, of the experts' layout, for the methods that use one.
        statistics: For the methods that use them, Fₘ or the Grams of each expert, in a list or by
            the experts' names.

    Returns:
        New tensors of the experts' layout and dtypes.

    Raises:
        UserError: If an argument is missing, would not be used, or does not fit the others.

    Examples:
        >>> import fmerge, torch
        >>> a, b = {"weight": torch.tensor([1.0, 2.0])}, {"weight": torch.tensor([3.0, 6.0])}
        >>> fmerge.merge([a, b], "Average")
        {'weight': tensor([2., 4.])}
        >>> fmerge.merge({"a": a, "b": b}, fmerge.methods.Isotropic(), {"a": 0.25, "b": 0.75})
        {'weight': tensor([2.5000, 5.0000])}
    """
    method = object_of("method", method, MergeMethod, methods)  # type: ignore[type-abstract]
    kind = type(method).__name__
    names = _names(experts)
    models = _models(experts, names, method, base)
    weights = _weights(kind, method, coefficients, names)
    measured = _statistics(kind, method, statistics, names)
    floats = [_floats(one) for one in models]
    if measured is not None:
        _check_statistics(method, measured, names, floats[0])
    try:
        merged = method.merge(None if base is None else _floats(base), floats, weights, measured)
    except ValueError as error:  # what a formula itself cannot do with these numbers
        raise UserError(f"{kind}: {error}") from error
    check_finite(merged, f"{kind} with coefficients {weights}")
    fixed = _constants(models if base is None else [base, *models])
    return {k: t.clone() if k in fixed else merged[k] for k, t in models[0].items()}


def _names(experts: Sequence[Params] | Mapping[str, Params]) -> list[Any]:
    _check_collection("experts", experts)
    return list(experts) if isinstance(experts, Mapping) else list(range(len(experts)))


def _check_collection(parameter: str, value: object) -> None:
    if not isinstance(value, Mapping | list | tuple):
        raise UserError(
            f"{parameter}: is {value!r}, but must be a list of dictionaries of tensors, or "
            "such dictionaries by name"
        )


def _models(
    experts: Sequence[Params] | Mapping[str, Params],
    names: Sequence[Any],
    method: MergeMethod,
    base: Params | None,
) -> list[Params]:
    """Checks the models, and puts the experts into the order of their names."""
    if not names:
        raise UserError("experts: is empty; give at least one dictionary of tensors")
    models = _in_order("experts", experts, names)
    given = {f"experts[{name!r}]": one for name, one in zip(names, models, strict=True)}
    for parameter, one in (given | ({} if base is None else {"base": base})).items():
        if not isinstance(one, Mapping) or not all(isinstance(t, Tensor) for t in one.values()):
            raise UserError(
                f"{parameter}: must be a dictionary of tensors, but is {_short(one)}; "
                "fmerge.load_params reads one from a folder or file"
            )
    method.check_count(len(models))
    _check_layouts({f"experts[{name!r}]": one for name, one in zip(names, models, strict=True)})
    if base is None and method.needs_base:
        name = type(method).__name__
        raise UserError(f"base: {name} needs the model that the experts started from")
    if base is not None:
        _check_layouts({f"experts[{names[0]!r}]": models[0], "base": base})
    return models


def _in_order(
    parameter: str, values: Sequence[_Value] | Mapping[Any, _Value], names: Sequence[Any]
) -> list[_Value]:
    """Puts one value per expert into the experts' order."""
    if isinstance(values, Mapping):
        if set(values) != set(names):
            raise UserError(
                f"{parameter}: are given for {known(values)}, but the experts are {known(names)}"
            )
        return [values[name] for name in names]
    if len(values) != len(names):
        raise UserError(f"{parameter}: {len(values)} are given for {len(names)} experts")
    return list(values)


def _check_layouts(models: Mapping[str, Params]) -> None:
    """Checks that models can be merged with the first: layout, equal integers, finite numbers."""
    first_name, first = next(iter(models.items()))
    for name, model in models.items():
        check_same_layout(first, model, first_name, name)
        check_finite(_floats(model), name)
        for key, tensor in model.items():
            if tensor.is_floating_point() != first[key].is_floating_point():
                raise UserError(
                    f"{name}: tensor '{key}' is {tensor.dtype}, but {first[key].dtype} in "
                    f"{first_name}"
                )
            counts = key.rpartition(".")[2] in FROM_THE_FIRST
            if not (tensor.is_floating_point() or counts or torch.equal(tensor, first[key])):
                raise UserError(
                    f"{name}: tensor '{key}' of {tensor.dtype} differs from that in {first_name}; "
                    "only floating-point tensors can be merged"
                )


def _weights(
    kind: str,
    method: MergeMethod,
    coefficients: Sequence[float] | Mapping[str, float] | None,
    names: Sequence[Any],
) -> list[float]:
    if coefficients is None:
        return [1 / len(names)] * len(names)
    if not method.uses_coefficients:
        instead = "; Isotropic is the weighted average" if kind == "Average" else ""
        raise UserError(f"coefficients: {kind} uses none; leave them out{instead}")
    values = _in_order("coefficients", coefficients, names)
    by_name = dict(zip(map(str, names), values, strict=True))
    found = check_coefficients(by_name, list(map(str, names)))
    check_signs(method, by_name)
    return found


def _statistics(
    kind: str,
    method: MergeMethod,
    statistics: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]] | None,
    names: Sequence[Any],
) -> list[Mapping[str, Any]] | None:
    if method.calibrates or method.chooses:
        how = "is calibrated on examples" if method.calibrates else "chooses by scores"
        raise UserError(f"method: {kind} {how}; merge by FMergeTrainer.merge, with data")
    if method.statistic is None and statistics is not None:
        raise UserError(f"statistics: {kind} uses none; leave them out")
    if method.statistic is None:
        return None
    if statistics is None:
        name = STATISTIC_NAMES[method.statistic]
        raise UserError(f"statistics: {kind} needs {name} for each expert")
    _check_collection("statistics", statistics)
    return _in_order("statistics", statistics, names)


def _check_statistics(
    method: MergeMethod,
    statistics: Sequence[Mapping[str, Any]],
    names: Sequence[Any],
    reference: Params,
) -> None:
    for name, one in zip(names, statistics, strict=True):
        if method.statistic == "gram":  # tensors without a Gram are averaged
            if alien := set(one) - set(reference):
                raise UserError(f"statistics[{name!r}]: no expert has a tensor '{min(alien)}'")
            continue
        if missing := [key for key in reference if key not in one]:
            more = f", nor are {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"statistics[{name!r}]: tensor '{missing[0]}' is not among them{more}, but "
                f"{type(method).__name__} needs a Fisher of each tensor of the experts; merge "
                "those that have none, such as running means, by Average"
            )
        check_same_layout(reference, one, f"experts[{names[0]!r}]", f"statistics[{name!r}]")
        for key, tensor in one.items():
            if not bool((tensor >= 0).all()):  # NaN is not
                raise UserError(f"statistics[{name!r}]: tensor '{key}' has entries below 0 or NaN")


def _constants(models: Sequence[Params]) -> set[str]:
    """Names the tensors that are the same in all models, or cannot be merged."""
    first, *others = models
    return {
        name
        for name, tensor in first.items()
        if not tensor.is_floating_point() or all(tensor.equal(one[name]) for one in others)
    }


def _short(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"


def _floats(model: Params) -> Params:
    return {name: tensor for name, tensor in model.items() if tensor.is_floating_point()}
