"""The methods of mergekit's recipes, by its conventions and in its precision."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor

from fmerge.errors import UserError
from fmerge.methods.base import TensorFormula
from fmerge.methods.inputs import MergeInputs
from fmerge.methods.recipe import Kind, read_recipe
from fmerge.methods.tensorwise import Tensorwise

_COLINEAR: Final = 0.9995  # |cos Ω| above which mergekit takes the straight line
_NOTHING: Final = 1e-7  # a sum of magnitudes below which nothing is rescaled


@final
class Mergekit(Tensorwise):
    """What ``mergekit-yaml`` of mergekit 0.1.5 makes of a recipe.

    Its conventions differ from those of this package's own methods: densities are of single
    tensors, weights and densities may change with the depth of a layer, ``rescale`` gives a thinned
    tensor the sum of magnitudes that it had, and all is computed in the recipe's ``dtype`` or that
    of the models. ``dare_*`` and ``della*`` draw at random: from a seed, the place of the model and
    the tensor's name here, and from the state of the process there.

    Args:
        recipe: What the YAML of the recipe holds.
        seed: Seed of the draws.

    Raises:
        UserError: If the recipe is not supported.
    """

    uses_coefficients = False

    def __init__(self, recipe: dict[str, Any], seed: int = 0) -> None:
        try:
            self._recipe = read_recipe(recipe)
        except UserError as error:
            raise UserError(f"mergekit: {error}") from error
        self.recipe = recipe
        self.seed = seed
        self.needs_base = self._recipe.kind.needs_base

    def check_count(self, count: int) -> None:
        """Checks that the experts are the models of the recipe.

        Args:
            count: M.

        Raises:
            UserError: If there are more or fewer.
        """
        if count != len(self._recipe.models):
            raise UserError(
                f"Mergekit: the recipe has {len(self._recipe.models)} models, but there are "
                f"{count} experts; give each model of the recipe, in its order"
            )

    def tensor_formula(self, inputs: MergeInputs) -> TensorFormula:
        """Prepares the recipe's method.

        Args:
            inputs: The recipe's models in its order, and its base for methods on differences.

        Returns:
            The formula, in the recipe's dtype.
        """
        recipe = self._recipe

        def merged(name: str) -> Tensor:
            place = inputs.places[name]
            depth = 0.0 if place.depth is None else 1.0
            if place.depth is not None and place.layers > 1:
                depth = place.depth / (place.layers - 1)
            shared, own = recipe.shared(name, depth), recipe.each(name, depth)
            tensors = [one[name] for one in inputs.experts]
            dtype = tensors[0].dtype if recipe.dtype is None else getattr(torch, recipe.dtype)
            models = [tensor.to(dtype) for tensor in tensors]
            if recipe.method == "linear":
                return _linear(models, [one["weight"] for one in own], shared["normalize"])
            if recipe.method == "slerp":
                first = recipe.models.index(str(recipe.base))
                return _slerp(models[first], models[1 - first], shared["t"])
            if recipe.method == "karcher":
                return _karcher(models, int(shared["max_iter"]), shared["tol"])
            keys = [f"{self.seed}|{m}|{name}" for m in range(len(models))]
            thinned = [
                _thinned(recipe.kind, model - inputs.origin[name].to(dtype), one, shared, key)
                for model, one, key in zip(models, own, keys, strict=True)
            ]
            weights = [one["weight"] for one in own]
            change = _combined(recipe.kind, thinned, weights, shared)
            return inputs.origin[name].to(dtype) + change

        return merged


def _linear(models: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Σₘ wₘθₘ, over Σₘ wₘ where it is normalized, in float32."""
    shares = torch.tensor(weights, dtype=torch.float32)
    total = torch.zeros_like(models[0], dtype=torch.float32)
    for model, share in zip(models, shares, strict=True):
        total.addcmul_(model, share)
    if normalize:
        total /= shares.sum()
    return total.to(models[0].dtype)


def _slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The point at t of the arc between two tensors; of the line where they are nearly colinear."""
    one, two = first.double().flatten(), second.double().flatten()
    norms = [torch.linalg.vector_norm(x) for x in (one, two)]
    units = [x / n if n > 1e-8 else x for x, n in zip((one, two), norms, strict=True)]
    cosine = (units[0] @ units[1]).clamp(-1, 1)
    shares = [1 - t, t]
    if cosine.abs() <= _COLINEAR:
        angle = torch.acos(cosine)
        shares = [float(torch.sin(share * angle) / torch.sin(angle)) for share in shares]
    return (shares[0] * one + shares[1] * two).view(first.shape).to(first.dtype)


def _karcher(models: Sequence[Tensor], iterations: int, tolerance: float) -> Tensor:
    """The mean direction of the models, by steps on the sphere, times their mean length."""
    dtype = models[0].dtype
    lengths = [torch.linalg.vector_norm(model.float()) for model in models]
    counted = [m for m, length in enumerate(lengths) if length > tolerance]
    if not counted:
        return torch.zeros_like(models[0])
    share = 1 / len(models) / sum(1 / len(models) for _ in counted)
    units = [(models[m] / lengths[m]).to(dtype) for m in counted]
    mean = torch.zeros_like(units[0])
    for unit in units:
        mean += share * unit
    size = torch.linalg.vector_norm(mean.float())
    mean = units[0].clone() if size < tolerance else (mean / size).to(dtype)
    for _ in range(iterations):
        step = torch.zeros_like(mean)
        for unit in units:
            cosine = torch.dot(mean.flatten(), unit.flatten()).clamp(-1, 1)
            angle = torch.arccos(cosine)
            if angle >= tolerance:
                step += share * (angle / torch.sin(angle)) * (unit - cosine * mean)
        size = torch.linalg.vector_norm(step.float())
        if size < tolerance:
            break
        mean = (torch.cos(size) * mean + torch.sin(size) * (step / size)).to(dtype)
        length = torch.linalg.vector_norm(mean.float())
        if length > tolerance:
            mean = (mean / length).to(dtype)
    whole: Tensor = torch.stack([length / len(models) for length in lengths]).sum() * mean
    return whole


def _combined(
    kind: Kind, deltas: Sequence[Tensor], weights: Sequence[float], shared: Mapping[str, Any]
) -> Tensor:
    """Σₘ wₘτₘ, of entries that agree with the sign of that sum where signs are elected."""
    stacked = torch.stack(list(deltas))
    shares = torch.tensor(weights, dtype=stacked.dtype).view(-1, *[1] * deltas[0].dim())
    stacked *= shares
    if kind.elects:
        upwards = stacked.sum(dim=0) >= 0  # an entry whose votes cancel goes up
        agrees = torch.where(upwards, stacked > 0, stacked < 0)
        change, divisor = (stacked * agrees).sum(dim=0), (shares * agrees).sum(dim=0)
        divisor = torch.where(divisor == 0, 1, divisor)
    else:
        change, divisor = stacked.sum(dim=0), shares.sum(dim=0)
        divisor = torch.where(divisor.abs() < 1e-8, 1, divisor)
    if shared["normalize"]:
        change = change / divisor
    return change * shared["lambda"] if shared["lambda"] != 1 else change


def _thinned(
    kind: Kind, delta: Tensor, own: Mapping[str, Any], shared: Mapping[str, Any], key: str
) -> Tensor:
    """A task vector whose entries are in part zeroed."""
    density = own["density"]
    if not kind.sparsify or density >= 1 or not delta.numel():
        return delta
    # draws are computed in float32 where there are no half-precision ones
    half = delta.dtype == torch.float16 and kind.sparsify in {"random", "ranked"}
    whole = delta.float() if half else delta
    if density <= 0 and kind.sparsify in {"magnitude", "ranked"}:
        return torch.zeros_like(delta)
    if kind.sparsify == "magnitude":
        mask = _largest(delta, max(1, int(density * delta.numel())))
    elif kind.sparsify == "outliers":
        mask = _middle(delta, density, own["gamma"])
    elif kind.sparsify == "random":
        mask = _draws(delta.shape, key) < whole.new_tensor(density)  # rounded, as it is there
    else:
        epsilon = own["epsilon"]
        if density + epsilon >= 1 or density - epsilon <= 0:
            raise ValueError(f"density {density} ± epsilon {epsilon} must lie in (0, 1)")
        mask = _draws(delta.shape, key) < _by_rank(delta, density, epsilon)
    masked = whole * mask
    if shared["rescale"]:
        before, after = whole.abs().sum(), masked.abs().sum()
        if before >= _NOTHING and after >= _NOTHING:
            masked = masked * (before / after)
    return masked.to(delta.dtype)


def _largest(delta: Tensor, count: int) -> Tensor:
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[torch.argsort(delta.abs().flatten().float(), descending=True)[:count]] = True
    return mask.view(delta.shape)


def _middle(delta: Tensor, density: float, gamma: float) -> Tensor:
    """The largest entries but for a share γ, so many as the density tells."""
    entries = delta.numel()
    count, top = int(density * entries), int(gamma * entries)
    first = max(0, entries - count - top)
    mask = torch.zeros(entries, dtype=torch.bool)
    mask[torch.sort(delta.abs().flatten().float()).indices[first : first + count]] = True
    return mask.view(delta.shape)


def _by_rank(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """Probabilities from density − ε of a row's smallest entry to density + ε of its largest."""
    rows = delta if delta.dim() > 1 else delta[None]
    work = torch.float32 if delta.dtype == torch.float16 else delta.dtype
    # in that dtype: the ranks of long rows are rounded, as they are there
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).to(work) + 1
    low, high = ranks.amin(dim=1, keepdim=True), ranks.amax(dim=1, keepdim=True)
    place = ((ranks - low) / (high - low)).clamp(0, 1)
    return (density - epsilon + place * 2 * epsilon).view(delta.shape)


def _draws(shape: Sequence[int], key: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
