"""Turns a base into the expert that an adapter makes of it: W = W₀ + ΔW, exactly."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fmerge.errors import UserError, printable
from fmerge.store.adapter_kinds import INSTEAD
from fmerge.store.adapters import Adapter, Target
from fmerge.store.pickles import load_plain

BASE_HASH = "base_sha256"
"""In an adapter's metadata: ``hash_of`` the tensors that it changes, as they are in its base."""


@torch.no_grad()
def apply_adapter(
    adapter: Adapter, model: nn.Module, source: str, values: bool = True
) -> frozenset[str]:
    """Adds ΔW to a base's weights, and puts in what the adapter saves as a whole.

    Args:
        adapter: The adapter.
        model: The base's network, which is changed.
        source: Where the adapter is, for messages.
        values: Whether numbers are read; without them names and shapes are checked.

    Returns:
        The names of the tensors that the adapter gives as a whole.

    Raises:
        UserError: If the adapter does not fit the model, or was made for another base.
    """
    stored = _read(adapter) if values else {}
    recorded = adapter.metadata.get(BASE_HASH) if values else None
    change = _Change(adapter, model, source, stored)
    given = {change.replace(*names) for names in adapter.replaced.items()}
    for path, target in adapter.targets.items():
        change.add(path, target)
    if recorded is not None and recorded != _joined(change.digests):
        raise UserError(
            f"{source}: was made for another base than {adapter.base}, whose weights differ from "
            "those that it records; give its own by --base"
        )
    change.finish()
    return frozenset(given)


def merged_weight(
    weight: Tensor, factors: Mapping[str, Tensor], scale: float, outputs_last: bool
) -> Tensor:
    """Adds an adapter's change to a weight.

    W = W₀ + s · B A (Hu et al. 2021, 2106.09685, section 4.1); of DoRA
    W = m · (W₀ + s · B A) / ‖W₀ + s · B A‖, the norm by output (Liu et al. 2024, 2402.09353,
    equation 5). A kernel of a convolution counts as a matrix of its outputs. It is computed in
    float64 and rounded once.

    Args:
        weight: W₀, (o, …), or (i, o) with ``outputs_last``.
        factors: ``A`` (r, …), ``B`` (o, r, …), and DoRA's ``magnitude`` m of o numbers, if any.
        scale: s.
        outputs_last: Whether W₀ is stored (i, o), as of an embedding or GPT-2's Conv1D.

    Returns:
        W, of the shape and dtype of W₀.
    """
    a, b = (factors[name].double().flatten(1) for name in "AB")
    whole = weight.double()
    whole = (whole.T if outputs_last else whole).flatten(1) + scale * (b @ a)
    if (magnitude := factors.get("magnitude")) is not None:
        whole = magnitude.double().reshape(-1, 1) * whole / whole.norm(dim=1, keepdim=True)
    return (whole.T if outputs_last else whole.reshape(weight.shape)).to(weight.dtype).contiguous()


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Hashes the weights of a base that an adapter changes; not their names, which may differ.

    Args:
        tensors: Names to tensors.

    Returns:
        The SHA-256 digest in hexadecimal, independent of the order of the names.
    """
    return _joined([_digest(one) for one in tensors.values()])


def _digest(tensor: Tensor) -> str:
    numbers = tensor.detach().cpu().contiguous().float().numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("|".join(sorted(digests)).encode()).hexdigest()


def outputs_last(module: nn.Module | None) -> bool | None:
    """Tells how a module that an adapter can target stores its weight.

    Args:
        module: The module.

    Returns:
        Whether its weight is (i, o), not (o, i); None if an adapter cannot target it.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D | nn.Embedding):
        return True
    plain = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
    return False if plain or isinstance(module, nn.Linear) else None


class _Change:
    """What an adapter makes of a model's tensors, checked against them and written one by one.

    Attributes:
        digests: Those of the base's tensors that have factors.
    """

    def __init__(
        self, adapter: Adapter, model: nn.Module, source: str, stored: Mapping[str, Tensor]
    ) -> None:
        self.adapter, self.source, self.stored = adapter, source, stored
        self.modules = dict(model.named_modules())
        self.prefix = getattr(model, "base_model_prefix", "") + "."
        # under all of their names, as an adapter may know a tied tensor by a later one
        self.own: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
        self.own.update(model.named_parameters(remove_duplicate=False))
        names: dict[int, list[str]] = {}
        for name, tensor in self.own.items():
            names.setdefault(id(tensor), []).append(name)
        self.tied = {one: group for group in names.values() if len(group) > 1 for one in group}
        self.new: dict[str, Tensor | None] = {}
        self.digests: list[str] = []

    def replace(self, name: str, stored: str) -> str:
        """Takes a tensor that is saved as a whole; returns its name in the model."""
        own = name if name in self.own else self.prefix + name
        if own not in self.own:
            raise self._alien(name)
        self._check_shape(own, self.adapter.header[stored][1])
        self._set(own, self.stored[stored].to(self.own[own].dtype) if self.stored else None)
        return own

    def add(self, path: str, target: Target) -> None:
        """Adds the change of one module."""
        own = path if path in self.modules else self.prefix + path
        if own not in self.modules:
            raise self._alien(path)
        last = outputs_last(self.modules[own])
        if last is None:
            raise UserError(
                f"{self.source}: targets '{own}', a {type(self.modules[own]).__name__}, whose ΔW "
                f"fmerge does not know; {INSTEAD}"
            )
        name, weight = f"{own}.weight", self._present(f"{own}.weight")
        self._check_factors(name, weight, target, last)
        factors = {part: self.stored[key] for part, key in target.names.items() if self.stored}
        if factors and name not in self.new:
            self.digests.append(_digest(weight))
        new = merged_weight(weight, factors, target.scale, last) if factors else None
        self._set(name, new)
        if "bias" in target.names:
            self._add_bias(f"{own}.bias", target, factors)

    def _add_bias(self, name: str, target: Target, factors: Mapping[str, Tensor]) -> None:
        if name not in self.own:
            raise UserError(
                f"{self.source}: adds a bias to '{name.removesuffix('.bias')}' (lora_bias), which "
                f"has none in {self.adapter.base}, so that no weights of it are this model"
            )
        self._check_shape(name, self.adapter.header[target.names["bias"]][1])
        new = None
        if factors:
            bias = self._present(name)
            new = (bias.double() + target.scale * factors["bias"].double()).to(bias.dtype)
        self._set(name, new)

    def _present(self, name: str) -> Tensor:
        waiting = self.new.get(name)
        return self.own[name] if waiting is None else waiting

    def _set(self, name: str, value: Tensor | None) -> None:
        """Writes a new value, if it was read: at once, so that no second model is in memory."""
        if value is not None and name not in self.tied:
            self.own[name].data = value
            value = None
        self.new[name] = value

    def finish(self) -> None:
        """Writes tied tensors; refuses to change one of two, as no weights would be that model."""
        for name in self.new.keys() & self.tied.keys():
            for other in self.tied[name]:
                one, two = self.new.get(name), self.new.get(other)
                same = one is None or two is not None and torch.allclose(one, two)
                if other not in self.new or not same:
                    raise UserError(
                        f"{self.source}: changes '{name}', but not in the same way '{other}', "
                        f"which is tied to it in {self.adapter.base} (tie_word_embeddings); give "
                        "a base and experts whose weights are not tied"
                    )
        for name, value in self.new.items():
            if value is not None:
                self.own[name].data = value

    def _check_factors(self, name: str, weight: Tensor, target: Target, last: bool) -> None:
        shapes = {part: self.adapter.header[key][1] for part, key in target.names.items()}
        rows = weight.shape[-1] if last else weight.shape[0]
        inner = weight.shape[:-1] if last else weight.shape[1:]
        ones = (1,) * (weight.dim() - 2)
        expected: dict[str, Sequence[int]] = {
            "A": (target.rank, *inner),
            "B": (rows, target.rank, *ones),
        }
        for part, shape in expected.items():
            if shapes[part] != tuple(shape):
                raise UserError(
                    f"{self.source}: lora_{part} of '{name.removesuffix('.weight')}' is "
                    f"{shapes[part]}, but its base {self.adapter.base} needs {tuple(shape)}; give "
                    "the base that it was trained on by --base"
                )
        numbers = 1
        for size in shapes.get("magnitude", (rows,)):
            numbers *= size
        if numbers != rows:
            self._check_shape(name, shapes["magnitude"])

    def _check_shape(self, name: str, shape: Sequence[int]) -> None:
        if tuple(self.own[name].shape) != tuple(shape):
            raise UserError(
                f"{self.source}: its '{name}' is {tuple(shape)}, but {tuple(self.own[name].shape)} "
                f"in its base {self.adapter.base}; give the base that it was trained on by --base"
            )

    def _alien(self, name: str) -> UserError:
        return UserError(
            f"{self.source}: changes '{printable(name)[:120]}', which its base "
            f"{self.adapter.base} does not have; give the base that it was trained on by --base"
        )


def _read(adapter: Adapter) -> Mapping[str, Tensor]:
    """An adapter's tensors."""
    if adapter.file.suffix == ".bin":
        found: Mapping[str, Tensor] = load_plain(adapter.file)
        return found
    try:
        with safe_open(adapter.file, framework="pt") as file:
            return {name: file.get_tensor(name) for name in adapter.header}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{adapter.file}: cannot read its tensors ({error}); get the file again"
        ) from error
