"""mergekit 0.1.5 as an oracle, where it is installed."""

from importlib import import_module

import pytest


def mergekit(module, function, tensors, base=None, **parameters):
    """One tensor, merged by a method of mergekit; weights are a list, an entry per tensor."""
    reason = "mergekit is not installed (pip install '.[mergekit]')"
    kit = pytest.importorskip("mergekit.merge_methods.base", reason=reason)
    method = getattr(import_module(f"mergekit.merge_methods.{module}"), function)
    inputs = tensors if base is None else [base, *tensors]
    group = kit.TensorGroup.from_tensors(inputs, base_index=None if base is None else 0)
    if "weight" in parameters:
        first = len(inputs) - len(tensors)
        parameters["weight"] = dict(enumerate(parameters["weight"], first))
    (merged,) = method([group], parameters=parameters)
    return merged
