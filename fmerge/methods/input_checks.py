"""What every formula assumes of its inputs, checked in one place."""

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

import torch

from fmerge.methods.inputs import MergeInputs
from fmerge.params import Between, Params

if TYPE_CHECKING:
    from fmerge.methods.base import MergeMethod


def of_one_dtype(experts: Sequence[Params]) -> Sequence[Params]:
    """Converts each tensor to the widest dtype that any expert has it in; none is copied twice.

    Args:
        experts: θₘ, of one layout.

    Returns:
        The experts, of one dtype by tensor.
    """
    dtypes = {
        name: reduce(torch.promote_types, (expert[name].dtype for expert in experts))
        for name in experts[0]
    }
    return [{name: one[name].to(dtype) for name, dtype in dtypes.items()} for one in experts]


def check_inputs(method: "MergeMethod", inputs: MergeInputs) -> None:
    """Checks counts, names and shapes against those of the experts.

    Args:
        method: The formula, which tells what it needs.
        inputs: What it was given.

    Raises:
        ValueError: If an input is missing, or does not fit the experts.
    """
    name, count = type(method).__name__, len(inputs.experts)
    if method.needs_base and inputs.base is None:
        raise ValueError(f"{name} needs the base model")
    numbers = {"coefficients": len(inputs.coefficients), "statistics": len(inputs.statistics)}
    if not method.uses_coefficients and not inputs.coefficients:
        del numbers["coefficients"]
    if method.statistic is None:
        del numbers["statistics"]
    for what, found in numbers.items():
        if found != count:
            raise ValueError(
                f"{name}: {what}: there are {found} for {count} experts; give one per expert"
            )
    sources = {f"expert {m}": one for m, one in enumerate(inputs.experts, 1)}
    if inputs.base is not None:
        sources["the base"] = inputs.base
    if method.statistic != "gram":  # which only linear layers have; all else is averaged
        sources |= {f"the Fisher of expert {m}": one for m, one in enumerate(inputs.statistics, 1)}
    for source, tensors in sources.items():
        if missing := [key for key in inputs.experts[0] if key not in tensors]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{name}: {source} lacks tensor '{missing[0]}'{more}")
        if isinstance(tensors, Between):  # of tensors that were checked; reading computes them
            continue
        for key, tensor in inputs.experts[0].items():
            if tensors[key].shape != tensor.shape:
                raise ValueError(
                    f"{name}: tensor '{key}' of {source} is {tuple(tensors[key].shape)}, but "
                    f"{tuple(tensor.shape)} in expert 1"
                )
