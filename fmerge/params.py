"""Named tensors: their layout and names, and running a module on other weights."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmerge.errors import UserError

Params = dict[str, Tensor]
"""Parameter names to tensors; a tied parameter is listed once, under its first name."""


def logarithms(params: Mapping[str, Tensor]) -> Params:
    """Computes what ``Between`` interpolates.

    Args:
        params: Names to tensors ≥ 0.

    Returns:
        The names to logarithms to the base 2, which a processor inverts faster than natural ones.
        They are finite: 0 gets the logarithm of the largest power of two that rounds to 0.
    """
    return {name: t.log2().clamp_min_(_log2_of_zero(t.dtype)) for name, t in params.items()}


def _log2_of_zero(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return math.log2(info.tiny * info.eps) - 1


@dataclass(frozen=True)
class Between(Mapping[str, Tensor]):
    """Geometric interpolation of two sets of tensors, low^(1 − share) · high^share, on demand.

    Attributes:
        low: Logarithms to the base 2 of the tensors at ``share`` 0.
        high: Logarithms of the tensors at ``share`` 1, of the same layout.
        share: The position between the two, in [0, 1].
    """

    low: Params
    high: Params
    share: float

    def __getitem__(self, name: str) -> Tensor:
        """Interpolates one whole tensor."""
        return self.of(self.low[name], self.high[name])

    def __contains__(self, name: object) -> bool:
        """Looks a name up; Mapping's own would interpolate the tensor for it."""
        return name in self.low

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self.low)

    def __len__(self) -> int:
        """Counts the tensors."""
        return len(self.low)

    def of(self, low: Tensor, high: Tensor, out: Tensor | None = None) -> Tensor:
        """Interpolates a part of a tensor.

        Args:
            low: A part of a tensor of ``self.low``.
            high: The same part of that tensor of ``self.high``.
            out: The tensor to write to; a new tensor when left out.

        Returns:
            The interpolated part; it is 0 where both ends are 0.
        """
        return torch.lerp(low, high, self.share, out=out).exp2_()


def params_of(module: nn.Module) -> Params:
    """Reads a module's parameters by name.

    Args:
        module: Any module.

    Returns:
        Names to detached tensors that share memory with the module; tied parameters once.
    """
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def layer_of(name: str) -> str:
    """Cuts a parameter's name after the number of its layer.

    Args:
        name: For instance ``bert.encoder.layer.0.output.dense.weight``.

    Returns:
        The name up to its first number (``bert.encoder.layer.0``); empty where it has none.
    """
    numbered = re.match(r"(.*?\.\d+)\.", name)
    return numbered.group(1) if numbered else ""


def select(params: Mapping[str, Tensor], prefix: str) -> Params:
    """Selects the entries whose names start with a prefix, under their full names.

    Args:
        params: Names to tensors.
        prefix: For a Hugging Face model, ``base_model_prefix + "."``: the body.

    Returns:
        The entries of the body, in the order of ``params``.
    """
    return {name: tensor for name, tensor in params.items() if name.startswith(prefix)}


def head_parts(model: nn.Module) -> frozenset[str]:
    """Names the parts of a Hugging Face classifier that are its head.

    Args:
        model: The classifier.

    Returns:
        Children, parameters and buffers of the model: all but its ``base_model``; where that is no
        part of its own, as in SigLIP's classifier, the child that holds the last linear layer.
    """
    prefix: str = model.base_model_prefix  # type: ignore[assignment]
    if not hasattr(model, prefix):
        linear = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
        return frozenset(name.partition(".")[0] for name in linear[-1:])
    tensors = [*model.named_parameters(recurse=False), *model.named_buffers(recurse=False)]
    return frozenset(name for name, _ in [*model.named_children(), *tensors]) - {prefix}


def last_linear(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Finds the last linear layer of a Hugging Face classifier's head.

    Args:
        model: The classifier.

    Returns:
        Its name and the layer; None where the head has none.
    """
    own = head_parts(model)
    for name, layer in reversed(list(model.named_modules())):
        if isinstance(layer, nn.Linear) and name.partition(".")[0] in own:
            return name, layer
    return None


def check_same_layout(
    reference: Mapping[str, Tensor], other: Mapping[str, Tensor], reference_name: str, name: str
) -> None:
    """Checks that two sets of tensors have the same names and shapes.

    Args:
        reference: The expected tensors.
        other: The tensors to check.
        reference_name: Where ``reference`` comes from, for the message.
        name: Where ``other`` comes from, for the message.

    Raises:
        UserError: If a name is missing or unexpected or a shape differs; the message names the
            first such tensor, both shapes, and how many more there are.
    """
    differing = [
        key
        for key in dict.fromkeys([*reference, *other])
        if key not in reference or key not in other or reference[key].shape != other[key].shape
    ]
    if not differing:
        return
    first = differing[0]
    expected, found = (
        f"{tuple(params[first].shape)}" if first in params else "no such tensor"
        for params in (reference, other)
    )
    more = f", and {len(differing) - 1} more tensors differ" if len(differing) > 1 else ""
    raise UserError(
        f"{name}: tensor '{first}' is {found}, but {expected} in {reference_name}{more}; "
        "merge models of one architecture only"
    )


def check_finite(params: Mapping[str, Tensor], name: str) -> None:
    """Checks that no tensor holds a NaN or an infinity.

    Args:
        params: Names to tensors.
        name: Where they come from, for the message.

    Raises:
        UserError: If one does; the message names the tensor and counts the bad entries.
    """
    for key, tensor in params.items():
        # the sum of finite floats is finite but for overflow: the full scan runs only then
        if not torch.isfinite(tensor.sum()) and (bad := int((~torch.isfinite(tensor)).sum())):
            raise UserError(
                f"{name}: tensor '{key}' holds {bad} NaN or infinite entries of "
                f"{tensor.numel()}; make the file again from a run that did not diverge"
            )


def task_vector(expert: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Params:
    """Computes τ = θ − θ₀.

    Args:
        expert: The fine-tuned weights θ.
        base: The pretrained weights θ₀, of the same layout.

    Returns:
        The differences, one tensor per name of ``base``.
    """
    return {name: expert[name] - tensor for name, tensor in base.items()}


def empty_like(params: Mapping[str, Tensor]) -> Params:
    """Allocates contiguous tensors of a layout.

    Args:
        params: Names to tensors.

    Returns:
        The names to uninitialised tensors of the same shapes, dtypes and devices.
    """
    return {
        name: torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for name, tensor in params.items()
    }


def fingerprint(params: Mapping[str, Tensor]) -> str:
    """Hashes names, dtypes, shapes and values: equal if and only if the model is the same.

    Args:
        params: Names to tensors, on any device.

    Returns:
        The SHA-256 digest in hexadecimal, independent of the order of the names.
    """
    digest = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].detach().cpu().contiguous()
        digest.update(digest_header(name, tensor))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def digest_header(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> bytes:
    """Writes what ``fingerprint`` hashes of a tensor before its numbers.

    Args:
        name: Its name.
        tensor: The tensor.
        dtype: The dtype that its numbers are hashed in; its own when left out.

    Returns:
        Name, dtype and shape.
    """
    return f"{name}|{dtype or tensor.dtype}|{tuple(tensor.shape)}|".encode()


@torch.no_grad()
def write_params(module: nn.Module, params: Mapping[str, Tensor]) -> None:
    """Copies values into a module's tensors in place, whatever their device and dtype.

    Args:
        module: The live module.
        params: Names of some of its parameters and buffers to new values of the same shapes.

    Raises:
        KeyError: If the module has no parameter or buffer of that name.
    """
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, value in params.items():
        if name not in own:
            raise KeyError(f"the module has no parameter '{name}'")
        own[name].copy_(value)


@contextmanager
def using_params(module: nn.Module, params: Mapping[str, Tensor]) -> Iterator[None]:
    """Runs a module on other weights; restores its own on exit, also after an error.

    Args:
        module: The live module.
        params: Names of some of its parameters to other values.

    Yields:
        Nothing; the module holds ``params`` inside the block.
    """
    own = dict(module.named_parameters())
    saved = {name: own[name].detach().clone() for name in params}
    try:
        write_params(module, params)
        yield
    finally:
        write_params(module, saved)
